"""One rank of the measurement: the same update by one method after the other, each alone in the GPU's memory."""

from __future__ import annotations

import argparse
import gc
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from torch import distributed as dist

from launcher.bridge.groups import init_process_group
from launcher.bridge.trainer.rank_group import RankGroup
from launcher.bridge.transport.choose import ON_HOST_MEMORY
from launcher.common.ports import serve_store
from launcher.testing.bench.bridge.baselines import baselines
from launcher.testing.bench.bridge.context import Context, Method, weight
from launcher.testing.bench.bridge.launcher_bridge import (
    DeltaMethod,
    LauncherBridge,
    launcher_methods,
    plan_of,
    received_tensors,
)
from launcher.testing.bench.bridge.report import MethodResult, report
from launcher.testing.bench.models import MODELS

TIMEOUT = timedelta(seconds=300)
SLOW_BYTES = 2 << 30
"""Of a model on GPUs, beyond which methods through host memory take minutes."""

MANY_TENSORS = 5000
"""Beyond which methods that gather each tensor by itself take minutes."""

Makers = dict[str, Callable[[], Method]]


def run_rank(options: argparse.Namespace) -> None:
    """Measures all methods; rank 0 reports."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        with tempfile.TemporaryDirectory(prefix="launcher-bench-") as directory:
            _run(options, directory)
    finally:
        dist.destroy_process_group()


def _run(options: argparse.Namespace, directory: str) -> None:
    context = _context(options, directory)
    makers, left_out = _methods(context, options.only)
    results = _measure(context, makers, options)
    if context.is_sender:
        report(results, left_out, options, sum(t.numel() * t.element_size() for t in context.tensors.values()))
    context.barrier()


def _context(options: argparse.Namespace, directory: str) -> Context:
    rank, size = dist.get_rank(), dist.get_world_size()
    device = torch.device("cpu")
    share = False
    if options.device == "cuda":
        share = torch.cuda.device_count() == 1 and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1
        device = torch.device("cuda", 0 if share else int(os.environ.get("LOCAL_RANK", rank)))
        torch.cuda.set_device(device)
    served = serve_store(os.environ["MASTER_ADDR"], TIMEOUT.total_seconds()) if rank == 0 else None
    ranks = RankGroup(os.environ["MASTER_ADDR"], TIMEOUT.total_seconds())
    words: list[str] = ranks.broadcast_json([served[1], directory] if served is not None else None)
    address, shared = words
    host, _, port = address.rpartition(":")
    store = served[0] if served is not None else dist.TCPStore(host, int(port), is_master=False, wait_for_workers=False)
    group = None
    if not share:
        group = init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            timeout=TIMEOUT,
            world_size=size,
            rank=rank,
            store=store,
            group_name="baselines",
            device=device,
        )
    model = MODELS[options.model]
    return Context(
        rank=rank,
        world_size=size,
        device=device,
        group=group,
        ranks=ranks,
        store=address,
        directory=Path(shared),
        model=model,
        tensors={
            spec.name: weight(spec, device) if rank == 0 else weight(spec, device).zero_() for spec in model.tensors()
        },
        round_bytes=options.round_mb << 20 if options.round_mb else None,
        density=options.density,
    )


def _methods(context: Context, only: str | None) -> tuple[Makers, list[str]]:
    """How to make each method, by name; and the names of those that are left out because they would take minutes.

    Args:
        only: regular expression of the names that are wanted, slow or not; None for all that are quick.
    """
    plan = plan_of(context)
    shadow = received_tensors(context, plan)
    makers: Makers = {name: partial(make, context) for name, make in baselines(context).items()}
    for transport, verify in launcher_methods(context):
        makers[LauncherBridge.title(transport, verify)] = partial(
            LauncherBridge, context, plan, shadow, transport, verify=verify
        )
        if verify:
            makers[DeltaMethod.title_of(transport, context.density)] = partial(
                DeltaMethod, context, plan, shadow, transport
            )
    if only is not None:
        return {name: make for name, make in makers.items() if re.search(only, name)}, []
    slow = [name for name in makers if _is_slow(context, name)]
    return {name: make for name, make in makers.items() if name not in slow}, slow


def _is_slow(context: Context, name: str) -> bool:
    nbytes = sum(tensor.nbytes for tensor in context.tensors.values())
    if DeltaMethod.is_title(name) and context.group is None:
        # Both ends keep another copy or two beside their tensors, on the one GPU.
        return 6 * nbytes > torch.cuda.get_device_properties(context.device).total_memory
    through_host = context.device.type == "cuda" and any(f"ours: {host}" in name for host in ON_HOST_MEMORY)
    one_by_one = "all-gather per parameter" in name or "handle per parameter" in name
    has_many = len(context.tensors) > MANY_TENSORS
    return (through_host and (has_many or nbytes > SLOW_BYTES)) or (one_by_one and has_many)


def _measure(context: Context, makers: Makers, options: argparse.Namespace) -> list[MethodResult]:
    """One method after the other, in an order drawn by the seed; the ceilings before and after all others."""
    ceilings = [name for name in makers if name.startswith("ceiling")]
    others = [name for name in makers if name not in ceilings]
    random.Random(options.seed).shuffle(others)
    turns = [*ceilings, *others, *(ceilings if others else [])]
    results = {name: MethodResult(name=name) for name in makers}
    _load_kernels(context)
    begin = time.monotonic()
    for number, name in enumerate(turns, 1):
        _measure_method(context, makers[name], results[name], options)
        if context.is_sender:
            took = sorted(results[name].seconds)[len(results[name].seconds) // 2]
            progress = f"[{number}/{len(turns)}] {name}: {took * 1e3:.1f} ms"
            print(f"{progress} ({time.monotonic() - begin:.0f} s so far)", file=sys.stderr, flush=True)
    return list(results.values())


def _measure_method(
    context: Context, make: Callable[[], Method], result: MethodResult, options: argparse.Namespace
) -> None:
    """One update that is not measured, and then as many as there is time for, at least two."""
    context.barrier()
    free = _free_bytes(context)
    method = make()
    spent = 0.0
    for turn in range(options.repeats + 1):
        seconds, extra = _once(context, method)
        if turn == 0:
            method.check()
            continue
        result.seconds.append(seconds)
        result.extra_bytes = max(result.extra_bytes, extra)
        result.sent_bytes = method.sent_bytes
        spent += seconds  # The slowest rank's, so that all end together.
        if turn >= 2 and spent > options.way_seconds:
            break
    method.check()
    held = torch.tensor(free - _free_bytes(context))
    dist.all_reduce(held, op=dist.ReduceOp.MAX)
    result.held_bytes = max(result.held_bytes, int(held))
    context.barrier()
    method.close()
    del method
    gc.collect()
    if context.device.type == "cuda":
        torch.cuda.empty_cache()


def _once(context: Context, method: Method) -> tuple[float, int]:
    """Seconds until the last rank was done, and bytes that torch took on the GPU of the rank that took most."""
    gpu = context.device.type == "cuda"
    method.prepare()
    context.barrier()
    before = torch.cuda.memory_allocated(context.device) if gpu else 0
    if gpu:
        torch.cuda.reset_peak_memory_stats(context.device)
    begin = time.perf_counter()
    method.once()
    if gpu:
        torch.cuda.synchronize(context.device)
    seconds = time.perf_counter() - begin
    extra = torch.cuda.max_memory_allocated(context.device) - before if gpu else 0
    worst = torch.tensor([seconds, float(extra)], dtype=torch.float64)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return float(worst[0]), int(worst[1])


def _free_bytes(context: Context) -> int:
    """Of the GPU, by its driver; 0 on a CPU."""
    if context.device.type != "cuda":
        return 0
    torch.cuda.synchronize(context.device)
    torch.cuda.empty_cache()
    free, _total = torch.cuda.mem_get_info(context.device)
    return free


def _load_kernels(context: Context) -> None:
    """Has the driver load what every method's preparation and check use: its memory is no method's."""
    spec = context.model.tensors()[0]
    value = weight(spec, context.device)
    value.view(-1)[:1].fill_(1.0)
    assert torch.equal(value, value.clone())
    assert int(torch.ones(8, dtype=torch.int64, device=context.device).sum()) == 8

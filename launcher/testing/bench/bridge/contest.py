"""One rank of the measurement: the same update by every way in turn, in an order that changes."""

from __future__ import annotations

import argparse
import os
import random
import re
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from torch import distributed as dist

from launcher.bridge.groups import init_process_group
from launcher.bridge.link_setup import serve_store
from launcher.bridge.trainer.rank_group import Ranks
from launcher.testing.bench.bridge.baselines import baselines
from launcher.testing.bench.bridge.changes import Changes
from launcher.testing.bench.bridge.models import MODELS
from launcher.testing.bench.bridge.ours import Ours, ours, plan_of, shadow_of
from launcher.testing.bench.bridge.report import Result, report
from launcher.testing.bench.bridge.stage import Stage, Way, weight

TIMEOUT = timedelta(seconds=300)


def contest(options: argparse.Namespace) -> None:
    """Measures all ways; rank 0 reports."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        with tempfile.TemporaryDirectory(prefix="launcher-bench-") as directory:
            _contest(options, directory)
    finally:
        dist.destroy_process_group()


def _contest(options: argparse.Namespace, directory: str) -> None:
    stage = _stage(options, directory)
    results = _measure(stage, _ways(stage, options.only), options.repeats, random.Random(options.seed))
    if stage.is_sender:
        report(results, options, sum(t.numel() * t.element_size() for t in stage.tensors.values()))
    stage.barrier()


def _stage(options: argparse.Namespace, directory: str) -> Stage:
    rank, size = dist.get_rank(), dist.get_world_size()
    device = torch.device("cpu")
    share = False
    if options.device == "cuda":
        share = torch.cuda.device_count() == 1 and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1
        device = torch.device("cuda", 0 if share else int(os.environ.get("LOCAL_RANK", rank)))
        torch.cuda.set_device(device)
    served = serve_store(os.environ["MASTER_ADDR"], TIMEOUT.total_seconds()) if rank == 0 else None
    ranks = Ranks(os.environ["MASTER_ADDR"], TIMEOUT.total_seconds())
    words: list[str] = ranks.share([served[1], directory] if served is not None else None)
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
    return Stage(
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


def _ways(stage: Stage, only: str | None) -> dict[str, Callable[[], Way]]:
    """How to make each way, by name; none exists before its turn, so that each has the memory for itself."""
    plan = plan_of(stage)
    shadow = shadow_of(stage, plan)
    makers: dict[str, Callable[[], Way]] = {way.name: partial(_itself, way) for way in baselines(stage)}
    for transport, verify in ours(stage):
        makers[Ours.title(transport, verify)] = partial(Ours, stage, plan, shadow, transport, verify=verify)
        if verify:
            makers[Changes.title_of(transport, stage.density)] = partial(Changes, stage, plan, shadow, transport)
    return {name: make for name, make in makers.items() if only is None or re.search(only, name)}


def _itself(way: Way) -> Way:
    return way


def _measure(stage: Stage, makers: dict[str, Callable[[], Way]], repeats: int, order: random.Random) -> list[Result]:
    """All ways once, then all again in another order, and so on: what disturbs the machine for a while disturbs all."""
    results = {name: Result(name=name) for name in makers}
    ways = {name: make() for name, make in makers.items()}
    for turn in range(repeats + 1):
        names = list(ways)
        order.shuffle(names)
        for name in names:
            seconds, extra = _once(stage, ways[name])
            if turn in (0, repeats):
                ways[name].check()
            if turn > 0:
                results[name].seconds.append(seconds)
                results[name].extra_bytes = max(results[name].extra_bytes, extra)
                results[name].sent_bytes = ways[name].sent_bytes
    for way in ways.values():
        way.close()
    return list(results.values())


def _once(stage: Stage, way: Way) -> tuple[float, int]:
    """Seconds until the last rank was done, and bytes on the GPU of the rank that took most besides the tensors."""
    gpu = stage.device.type == "cuda"
    way.prepare()
    stage.barrier()
    before = torch.cuda.memory_allocated(stage.device) if gpu else 0
    if gpu:
        torch.cuda.reset_peak_memory_stats(stage.device)
    begin = time.perf_counter()
    way.once()
    if gpu:
        torch.cuda.synchronize(stage.device)
    extra = torch.cuda.max_memory_allocated(stage.device) - before if gpu else 0
    worst = torch.tensor([time.perf_counter() - begin, float(extra)], dtype=torch.float64)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return float(worst[0]), int(worst[1])

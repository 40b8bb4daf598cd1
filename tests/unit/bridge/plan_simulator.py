"""A plan's traffic and time on paper.

Run ``python -m tests.unit.bridge.plan_simulator --model llama-70b --trainers 16 --engines 2xtp8``.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from launcher.bridge.plan.dtypes import ITEMSIZE
from launcher.bridge.plan.plan import Engine, Plan, Receiver
from launcher.bridge.plan.plan_digest import plan_digest
from launcher.bridge.plan.planner import reshard
from launcher.bridge.plan.requirements import Parameter
from launcher.bridge.plan.sharding import Sharding, TensorSpec, fsdp, hsdp, place, replicated
from launcher.bridge.plan.split import Location
from launcher.bridge.plan.verify import verify_plan
from launcher.common.errors import BridgeError, LauncherError
from launcher.testing.bench import engine_layout
from launcher.testing.bench.engine_layout import WHOLE, Slice, fused, sharded
from launcher.testing.bench.models import LLAMA_8B, Model


@dataclass(frozen=True, kw_only=True)
class LatentModel(Model):
    """With multi-head latent attention in place of grouped queries."""

    q_lora_rank: int
    kv_lora_rank: int
    nope_head_dim: int
    rope_head_dim: int
    value_head_dim: int

    def _attention_shapes(self, at: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden, heads = self.hidden_size, self.num_heads
        yield at + "q_a_proj.weight", (self.q_lora_rank, hidden)
        yield at + "q_a_layernorm.weight", (self.q_lora_rank,)
        yield at + "q_b_proj.weight", (heads * (self.nope_head_dim + self.rope_head_dim), self.q_lora_rank)
        yield at + "kv_a_proj_with_mqa.weight", (self.kv_lora_rank + self.rope_head_dim, hidden)
        yield at + "kv_a_layernorm.weight", (self.kv_lora_rank,)
        yield at + "kv_b_proj.weight", (heads * (self.nope_head_dim + self.value_head_dim), self.kv_lora_rank)
        yield at + "o_proj.weight", (hidden, heads * self.value_head_dim)

    def _attention(self, at: str, specs: dict[str, TensorSpec], tp: Slice) -> Iterator[Parameter]:
        both = [specs[at + "q_a_proj.weight"], specs[at + "kv_a_proj_with_mqa.weight"]]
        yield fused(at + "fused_qkv_a_proj.weight", both, None, tp)
        for name in ("q_a_layernorm.weight", "kv_a_layernorm.weight"):
            yield engine_layout.replicated(at + name, specs[at + name])
        for name in ("q_b_proj.weight", "kv_b_proj.weight"):
            yield sharded(at + name, specs[at + name], 0, tp)
        yield sharded(at + "o_proj.weight", specs[at + "o_proj.weight"], 1, tp)


LLAMA_70B = replace(LLAMA_8B, hidden_size=8192, num_layers=80, num_heads=64, intermediate_size=28672)
QWEN3_235B = Model(
    hidden_size=4096, num_layers=94, num_heads=64, num_kv_heads=4, head_dim=128, intermediate_size=12288,
    vocab_size=151936, qk_norm=True, num_experts=128, moe_intermediate_size=1536,
)  # fmt: skip
KIMI_1T = LatentModel(
    hidden_size=7168, num_layers=61, num_heads=64, num_kv_heads=64, head_dim=192, intermediate_size=18432,
    vocab_size=163840, num_experts=384, moe_intermediate_size=2048, num_shared_experts=1, first_dense_layers=1,
    q_lora_rank=1536, kv_lora_rank=512, nope_head_dim=128, rope_head_dim=64, value_head_dim=128,
)  # fmt: skip

MODELS = {"llama-8b": LLAMA_8B, "llama-70b": LLAMA_70B, "qwen3-235b": QWEN3_235B, "kimi-1t": KIMI_1T}
"""By the name that `--model` takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Bandwidths of one direction, in bytes per second."""

    node: float = 400e9
    """All network cards of a node; one GPU has its share of it."""

    intra: float = 450e9
    """One GPU to the others of its node."""

    gpus_per_node: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a plan moves, and how long that takes if every round waits for the slowest link of the one before."""

    model_bytes: int
    trainer_out: tuple[int, ...]
    engine_in: tuple[int, ...]
    node_in: dict[int, int]
    """Over the network, by node."""

    node_out: dict[int, int]
    rounds: int
    seconds: float
    limit: float
    """Seconds below which no plan can come: what a node must take in, or what must leave the trainer once."""


Step = Counter[tuple[str, int, int]]


def simulate(plan: Plan, links: Links = Links()) -> Report:
    """Adds up the plan's rounds on links of a given speed."""
    steps: dict[int, Step] = {}
    sent: Counter[int] = Counter()
    taken: Counter[Receiver] = Counter()
    for index, engine in enumerate(plan.engines):
        for rank, at in enumerate(engine.locations):
            receiver = Receiver(engine=index, rank=rank)
            for number, flow in _by_round(plan, receiver).items():
                step = steps.setdefault(number, Counter())
                taken[receiver] += sum(flow.values())
                sent.update(flow)
                for source, nbytes in flow.items():
                    _move(step, plan.trainers[source], at, nbytes)
    totals: Step = sum(steps.values(), Counter())
    receivers = [Receiver(engine=i, rank=r) for i, e in enumerate(plan.engines) for r in range(len(e.locations))]
    return Report(
        model_bytes=_model_bytes(plan),
        trainer_out=tuple(sent[rank] for rank in range(len(plan.trainers))),
        engine_in=tuple(taken[r] for r in receivers),
        node_in={node: n for (kind, node, _), n in sorted(totals.items()) if kind == "node in"},
        node_out={node: n for (kind, node, _), n in sorted(totals.items()) if kind == "node out"},
        rounds=plan.rounds,
        seconds=sum(_time(step, links) for step in steps.values()),
        limit=_limit(plan, links),
    )


def _by_round(plan: Plan, receiver: Receiver) -> dict[int, Counter[int]]:
    counts = Counter(
        (chunks.round, t.split, ITEMSIZE[t.wire], chunks.start, chunks.stop, t.chunks)
        for t in plan.transfers[receiver]
        for chunks in t.schedule
    )
    rounds: dict[int, Counter[int]] = {}
    for (number, split, itemsize, start, stop, count), times in counts.items():
        flow = rounds.setdefault(number, Counter())
        for source in split.by_source:
            flow[source] += times * split.bytes_from(source, itemsize, start, stop, count)
    return rounds


def _move(step: Step, source: Location, to: Location, nbytes: int) -> None:
    remote = source.node != to.node
    step["net out" if remote else "gpu out", source.node, source.gpu] += nbytes
    step["net in" if remote else "gpu in", to.node, to.gpu] += nbytes
    if remote:
        step["node out", source.node, -1] += nbytes
        step["node in", to.node, -1] += nbytes


def _time(step: Step, links: Links) -> float:
    speed = {"net": links.node / links.gpus_per_node, "gpu": links.intra, "node": links.node}
    return max((nbytes / speed[kind.split()[0]] for (kind, _, _), nbytes in step.items()), default=0.0)


def _model_bytes(plan: Plan) -> int:
    wire = {t.region.source: ITEMSIZE[t.wire] for transfers in plan.transfers.values() for t in transfers}
    return sum(shard.box.volume * wire.get(s.name, 0) for s in plan.sources.values() for shard in s.shards)


def _limit(plan: Plan, links: Links) -> float:
    total = _model_bytes(plan)
    senders = {at.node for at in plan.trainers}
    limits = [0.0]
    for engine in plan.engines:
        nodes = {at.node for at in engine.locations}
        if nodes <= senders:
            limits.append(total / len(engine.locations) / links.intra)
        else:
            limits += [total / len(nodes) / links.node, total / len(senders) / links.node]
    return max(limits)


def on_paper(
    model: Model,
    *,
    trainers: int,
    engines: str,
    sharding: str = "fsdp",
    gpus_per_node: int = 8,
    colocated: bool = False,
    round_bytes: int = 128 << 20,
) -> Plan:
    """A plan for a model and engines such as ``2xtp8`` (replicas x ranks) or ``1xep16`` (experts divided over 16).

    Raises:
        BridgeError: ``engines`` or ``sharding`` is not understood, or the model cannot be divided so.
    """
    found = re.fullmatch(r"(\d+)x(tp|ep)(\d+)", engines)
    if not found:
        raise BridgeError(f"`--engines` ({engines}) is not of the form 2xtp8 or 1xep16.")
    count, size = int(found[1]), int(found[3])
    sources = place(model.tensors(), [(".*", _sharding(sharding, trainers))])
    ranks = [Slice(rank=rank, size=size) for rank in range(size)]
    parameters = tuple(model.parameters(tp, tp if found[2] == "ep" else WHOLE) for tp in ranks)
    first = 0 if colocated else -(-trainers // gpus_per_node) * gpus_per_node
    places = [_location(first + i, gpus_per_node) for i in range(count * size)]
    replicas = [Engine(parameters=parameters, locations=tuple(places[i * size : (i + 1) * size])) for i in range(count)]
    return reshard(sources, replicas, [_location(i, gpus_per_node) for i in range(trainers)], round_bytes=round_bytes)


def _location(index: int, gpus_per_node: int) -> Location:
    return Location(node=index // gpus_per_node, gpu=index % gpus_per_node)


def _sharding(text: str, trainers: int) -> Sharding:
    if text == "plain":
        return replicated(trainers)
    found = re.fullmatch(r"fsdp|hsdp(\d+)", text)
    if not found or trainers % int(found[1] or 1):
        raise BridgeError(
            f"`--sharding` ({text}) is not plain, fsdp, or hsdpR with R a divisor of {trainers} trainers."
        )
    return hsdp(int(found[1]), trainers // int(found[1])) if found[1] else fsdp(trainers)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.unit.bridge.plan_simulator", description="A plan's traffic and time on paper."
    )
    parser.add_argument("--model", choices=sorted(MODELS), default="llama-70b")
    parser.add_argument("--dtype", choices=sorted(ITEMSIZE), default="bfloat16", help="of all tensors")
    parser.add_argument("--trainers", type=int, default=16, help="GPUs that train")
    parser.add_argument("--sharding", default="fsdp", help="plain, fsdp, or hsdpR (R replicas)")
    parser.add_argument("--engines", default="2xtp8", help="replicas x tpN, or epN: experts divided over the N ranks")
    parser.add_argument("--colocated", action="store_true", help="engines begin on the trainer's first GPU")
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--inter-gbs", type=float, default=400, help="GB/s of a node's network, one direction")
    parser.add_argument("--intra-gbs", type=float, default=450, help="GB/s of a GPU inside its node, one direction")
    parser.add_argument("--round-mb", type=int, default=128, help="MiB that a receiver takes in one round")
    args = parser.parse_args(argv)
    links = Links(node=args.inter_gbs * 1e9, intra=args.intra_gbs * 1e9, gpus_per_node=args.gpus_per_node)
    try:
        model = replace(MODELS[args.model], dtype=args.dtype)
        started = time.perf_counter()
        plan = on_paper(
            model,
            trainers=args.trainers,
            engines=args.engines,
            sharding=args.sharding,
            gpus_per_node=args.gpus_per_node,
            colocated=args.colocated,
            round_bytes=args.round_mb << 20,
        )
        planned = time.perf_counter()
        verify_plan(plan)
        verified = time.perf_counter()
    except LauncherError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(render(simulate(plan, links)))
    print(
        f"planned in {planned - started:.2f} s, proven in {verified - planned:.2f} s, digest {plan_digest(plan)[:16]}"
    )
    return 0


def render(report: Report) -> str:
    """The report as lines for people; GB are 10^9 bytes."""
    lines = [f"model            {report.model_bytes / 1e9:10.2f} GB on the wire"]
    for name, ranks in (
        ("trainer rank out", report.trainer_out),
        ("engine rank in", report.engine_in),
        ("node in", tuple(report.node_in.values())),
        ("node out", tuple(report.node_out.values())),
    ):
        if any(ranks):
            mean = sum(ranks) / len(ranks) / 1e9
            lines.append(f"{name:<16} {min(ranks) / 1e9:10.2f} GB least, {max(ranks) / 1e9:.2f} most, {mean:.2f} mean")
    lines.append(f"rounds           {report.rounds:10d}")
    lines.append(
        f"time             {report.seconds:10.4f} s, limit {report.limit:.4f} s: {report.seconds / report.limit:.3f}x"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

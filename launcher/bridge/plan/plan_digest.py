"""A fingerprint of a plan by which ranks agree before a byte moves, and which names what they disagree about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256

from launcher.bridge.plan.boxes import Box
from launcher.bridge.plan.plan import Plan
from launcher.bridge.plan.sharding import Shard
from launcher.bridge.plan.split import Split

FRAME = "(plan)"
"""The name under which everything that belongs to no single tensor is fingerprinted: ranks and places."""


def fingerprints(plan: Plan) -> dict[str, str]:
    """Per trainer tensor 16 hexadecimal digits over its placement and all its transfers; `FRAME` first.

    This is what two ranks exchange when their digests differ: it names the tensor without carrying the plan.
    """
    memo: dict[int, str] = {}
    lines: dict[str, list[str]] = {}
    for name, source in plan.sources.items():
        lines[name] = [f"{name} {source.shape} {source.dtype} {_once(memo, source.shards)}"]
    for receiver, transfers in plan.transfers.items():
        who = f"{receiver.engine}.{receiver.rank}"
        for t in transfers:
            region = t.region
            schedule = [(chunks.round, chunks.start, chunks.stop) for chunks in t.schedule]
            lines[region.source].append(
                f"{who} {t.parameter} {_box(region.box)} {_box(region.target)} {region.axes} {t.wire} {t.chunks} "
                f"{schedule} {_once(memo, t.split)}"
            )
    frame = {
        "trainers": [(at.node, at.gpu) for at in plan.trainers],
        "engines": [[(at.node, at.gpu) for at in engine.locations] for engine in plan.engines],
        "round_bytes": plan.round_bytes,
        "shapes": [
            [_shapes(memo, plan, index, rank) for rank in range(len(e.parameters))]
            for index, e in enumerate(plan.engines)
        ],
    }
    named = {FRAME: _short(json.dumps(frame))}
    named.update((name, _short("\n".join(lines[name]))) for name in sorted(lines))
    return named


def plan_digest(plan: Plan) -> str:
    """sha256, 64 hexadecimal digits, over all fingerprints in order of name."""
    return sha256("\n".join(f"{name} {value}" for name, value in fingerprints(plan).items()).encode()).hexdigest()


def first_difference(a: Plan | Mapping[str, str], b: Plan | Mapping[str, str]) -> str | None:
    """The first name, in order, that two plans (or their fingerprints) do not have in common; None when they agree."""
    ours = fingerprints(a) if isinstance(a, Plan) else a
    theirs = fingerprints(b) if isinstance(b, Plan) else b
    # A difference of the frame shifts everything; a tensor says more.
    for name in [*sorted((ours.keys() | theirs.keys()) - {FRAME}), FRAME]:
        if ours.get(name) != theirs.get(name):
            return name
    return None


def _once(memo: dict[int, str], value: Split | tuple[Shard, ...]) -> str:
    known = memo.get(id(value))
    if known is None:
        if isinstance(value, Split):
            text = ";".join(f"{_box(p)}@{s}" for p, s in zip(value.boxes, value.sources, strict=True))
        else:
            text = ";".join(f"{_box(shard.box)}@{shard.ranks}" for shard in value)
        known = memo[id(value)] = _short(text)
    return known


def _shapes(memo: dict[int, str], plan: Plan, engine: int, rank: int) -> str:
    parameters = plan.engines[engine].parameters[rank]
    known = memo.get(id(parameters))
    if known is None:
        lines = (f"{p.name} {p.shape} {p.dtype} {[_box(box) for box in p.padding]}" for p in parameters)
        known = memo[id(parameters)] = _short("\n".join(lines))
    return known


def _box(box: Box) -> str:
    return f"{box.start}{box.stop}"


def _short(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]

"""A small model on paper, its trainer's placement and its engine's needs: what both ends of a transfer agree on."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch

from launcher.bridge.codec.local import LocalTensor
from launcher.bridge.plan import (
    Box,
    Engine,
    Location,
    Parameter,
    Plan,
    Region,
    Sharding,
    TensorSpec,
    reshard,
    verify_plan,
)
from launcher.bridge.plan import place as placed
from launcher.bridge.plan.sharding import fsdp, fsdp_tp, tensor_parallel
from launcher.bridge.plan.sharding import replicated as plain
from launcher.testing.bench.engine_layout import Slice, fused, qkv, replicated, sharded, vocabulary

State = dict[str, torch.Tensor]
Shards = dict[str, LocalTensor]

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INNER, VOCAB, PADDED = 8, 2, 6, 26, 44, 149, 192
MIB_ROWS = 4096
"""Rows of the large tensors: 1 MiB each."""

SMALL = (
    TensorSpec(name="embed", shape=(VOCAB, HIDDEN)),
    TensorSpec(name="q", shape=(HEADS * HEAD_DIM, HIDDEN)),
    TensorSpec(name="k", shape=(KV_HEADS * HEAD_DIM, HIDDEN)),
    TensorSpec(name="v", shape=(KV_HEADS * HEAD_DIM, HIDDEN)),
    TensorSpec(name="q_bias", shape=(HEADS * HEAD_DIM,)),
    TensorSpec(name="o", shape=(HIDDEN, HEADS * HEAD_DIM)),
    TensorSpec(name="gate", shape=(INNER, HIDDEN)),
    TensorSpec(name="up", shape=(INNER, HIDDEN)),
    TensorSpec(name="down", shape=(HIDDEN, INNER)),
    TensorSpec(name="norm", shape=(HIDDEN,)),
    # The trainer keeps more than the engine wants, and the other way round.
    TensorSpec(name="master", shape=(33, 12), dtype="float32"),
    TensorSpec(name="widened", shape=(7, 9)),
    TensorSpec(name="turned", shape=(5, 6, 7)),
    TensorSpec(name="one", shape=(1,), dtype="float32"),
)
LARGE = tuple(TensorSpec(name=f"large.{i:02}", shape=(MIB_ROWS, 64), dtype="float32") for i in range(48))
"""More than what the system's buffers take between two processes."""

FINITE = frozenset({"master", "widened"})
"""Those whose values are cast, so that their bits are those of ordinary numbers."""


@dataclass(frozen=True, kw_only=True)
class TransferCase:
    """What is sent, from which ranks to which workers; JSON on its way to a process."""

    trainers: int
    workers: int
    placement: str = "fsdp"
    """``plain``, ``fsdp``, ``tp`` or ``fsdp+tp``."""

    model: str = "small"
    """``small`` or ``large``."""

    round_bytes: int = 1000
    misplaced: str | None = None
    """A tensor that this side wrongly believes to be placed another way."""

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @cached_property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The trainer's tensors."""
        return SMALL if self.model == "small" else LARGE

    @cached_property
    def plan(self) -> Plan:
        """The plan for one replica, proven."""
        engine = Engine(
            parameters=tuple(self.needs(rank) for rank in range(self.workers)),
            locations=tuple(Location(node=1, gpu=rank) for rank in range(self.workers)),
        )
        trainers = [Location(node=0, gpu=rank) for rank in range(self.trainers)]
        plan = reshard(placed(self.specs, self._rules()), [engine], trainers, round_bytes=self.round_bytes)
        verify_plan(plan)
        return plan

    def state(self, version: int, density: float | None = None) -> State:
        """The whole model: random bits, the same wherever they are computed, others for every version.

        Args:
            density: share of the elements that differ from the version before, all the way down to version 1; None:
                nothing is in common.
        """
        if density is not None and version > 1:
            found, new = self.state(version - 1, density), self.state(version)
            for name, tensor in found.items():
                generator = torch.Generator().manual_seed(zlib.crc32(f"{version} {name}".encode()))
                chosen = torch.rand(tensor.shape, generator=generator) < density
                tensor[chosen] = new[name][chosen]
            return found
        found = {}
        for spec in self.specs:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{version} {spec.name}".encode()))
            dtype: torch.dtype = getattr(torch, spec.dtype)
            if spec.name in FINITE:
                found[spec.name] = torch.randn(spec.shape, generator=generator).to(dtype)
            else:
                nbytes = torch.Size(spec.shape).numel() * dtype.itemsize
                noise = torch.randint(0, 256, (nbytes,), generator=generator, dtype=torch.uint8)
                found[spec.name] = noise.view(dtype).view(spec.shape)
        return found

    def shards(self, state: Mapping[str, torch.Tensor], rank: int) -> Shards:
        """What a trainer rank holds of a model."""
        return held(self.plan, state, rank)

    def needs(self, rank: int) -> tuple[Parameter, ...]:
        """One worker's parameters."""
        spec, tp = {s.name: s for s in self.specs}, Slice(rank=rank, size=self.workers)
        if self.model == "large":
            return tuple(sharded(name, of, 0, tp) for name, of in spec.items())
        turned = spec["turned"].shape
        part = Region(source="turned", box=Box.full(turned), target=Box.full((6, 7, 5)), axes=(1, 2, 0))
        q, k, v = spec["q"], spec["k"], spec["v"]
        return (
            vocabulary("embed_tokens", spec["embed"], padded_to=PADDED, tp=tp),
            vocabulary("lm_head", spec["embed"], padded_to=PADDED, tp=tp),
            qkv("qkv_proj", q, k, v, heads=HEADS, kv_heads=KV_HEADS, tp=tp),
            sharded("q_bias", spec["q_bias"], 0, tp),
            sharded("o_proj", spec["o"], 1, tp),
            fused("gate_up_proj", [spec["gate"], spec["up"]], 0, tp),
            sharded("down_proj", spec["down"], 1, tp),
            replicated("norm", spec["norm"]),
            replicated("master", spec["master"], dtype="bfloat16"),
            replicated("widened", spec["widened"], dtype="float32"),
            Parameter(name="turned", shape=(6, 7, 5), dtype="bfloat16", regions=(part,)),
            replicated("one", spec["one"]),
        )

    def expected(self, state: Mapping[str, torch.Tensor], rank: int) -> State:
        """What a worker must hold, cut out of the whole model without the planner."""

        def cut(name: str, dim: int, parts: int = self.workers, index: int = rank) -> torch.Tensor:
            return state[name].chunk(parts, dim)[index]

        if self.model == "large":
            return {spec.name: cut(spec.name, 0) for spec in self.specs}
        padded = torch.zeros(PADDED, HIDDEN, dtype=torch.bfloat16)
        padded[:VOCAB] = state["embed"]
        heads = min(KV_HEADS, self.workers)
        kv = [cut(name, 0, heads, rank * heads // self.workers) for name in ("k", "v")]
        return {
            "embed_tokens": padded.chunk(self.workers)[rank],
            "lm_head": padded.chunk(self.workers)[rank],
            "qkv_proj": torch.cat([cut("q", 0), *kv]),
            "q_bias": cut("q_bias", 0),
            "o_proj": cut("o", 1),
            "gate_up_proj": torch.cat([cut("gate", 0), cut("up", 0)]),
            "down_proj": cut("down", 1),
            "norm": state["norm"],
            "master": state["master"].bfloat16(),
            "widened": state["widened"].float(),
            "turned": state["turned"].permute(1, 2, 0),
            "one": state["one"],
        }

    def _rules(self) -> list[tuple[str, Sharding]]:
        size = self.trainers
        rules: list[tuple[str, Sharding]] = []
        if self.misplaced is not None:
            rules.append((self.misplaced, plain(size)))
        if self.placement in {"plain", "fsdp"}:
            return [*rules, (".*", plain(size) if self.placement == "plain" else fsdp(size))]
        inner = 2 if size % 2 == 0 else size
        make = tensor_parallel if self.placement == "tp" else fsdp_tp
        outer, inner = (1, size) if self.placement == "tp" else (size // inner, inner)
        return [
            *rules,
            ("q|k|v|q_bias|gate|up|embed", make(outer, inner, 0)),
            ("o|down", make(outer, inner, 1)),
            (".*", make(outer, inner, None)),
        ]


def held(plan: Plan, whole: Mapping[str, torch.Tensor], rank: int) -> Shards:
    """Copies of what a trainer rank holds."""
    return {
        name: LocalTensor(tuple((s.box, whole[name][s.box.slices()].clone()) for s in source.shards if rank in s.ranks))
        for name, source in plan.sources.items()
    }

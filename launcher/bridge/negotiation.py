"""What both sides of a replica's group compute alike before a byte moves: from the same facts the same plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from launcher.bridge.manifest import Manifest, from_json, to_json
from launcher.bridge.plan import Engine, Location, Message, Plan, Source, reshard
from launcher.bridge.plan.dtypes import ITEMSIZE
from launcher.bridge.plan.sharding import Sharding, shards_of
from launcher.bridge.plan.split import aligned
from launcher.bridge.weightmap import Binding, needs, never_used
from launcher.common.errors import BridgeError


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerFacts:
    """What the trainer says of itself; JSON on the wire."""

    manifest: Manifest
    shardings: Mapping[str, Sharding]
    """By name of a weight with a storage of its own."""

    locations: tuple[Location, ...]
    """Where each trainer rank runs."""

    round_bytes: int
    """Most bytes that a receiver stages at a time."""

    adapter: Mapping[str, Any] | None = None
    """PEFT's description of the adapter whose matrices these are; None for the model's weights."""

    def to_json(self) -> dict[str, Any]:
        """JSON form; equal placements are written once."""
        distinct = list(dict.fromkeys(self.shardings.values()))
        number = {sharding: index for index, sharding in enumerate(distinct)}
        return {
            "manifest": to_json(self.manifest),
            "shardings": [{"mesh": s.mesh, "dims": s.dims, "order": s.order} for s in distinct],
            "sharding_of": {name: number[sharding] for name, sharding in self.shardings.items()},
            "locations": [[at.node, at.gpu] for at in self.locations],
            "round_bytes": self.round_bytes,
            "adapter": self.adapter,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainerFacts:
        """The facts of their JSON form.

        Raises:
            KeyError, TypeError: it is not one.
        """
        distinct = [
            Sharding(mesh=tuple(s["mesh"]), dims=tuple(s["dims"]), order=tuple(s["order"])) for s in data["shardings"]
        ]
        return cls(
            manifest=from_json(data["manifest"]),
            shardings={name: distinct[index] for name, index in data["sharding_of"].items()},
            locations=_locations(data["locations"]),
            round_bytes=int(data["round_bytes"]),
            adapter=data["adapter"],
        )

    def sources(self) -> dict[str, Source]:
        """The trainer's tensors in the planner's terms."""
        return {
            entry.name: Source(
                name=entry.name,
                shape=entry.shape,
                dtype=entry.dtype,
                shards=shards_of(self.shardings[entry.name], entry.shape),
            )
            for entry in self.manifest
            if entry.alias_of is None
        }


def replica_plan(trainer: TrainerFacts, workers: Sequence[Mapping[str, Any]]) -> Plan:
    """The plan for one replica.

    Args:
        trainer: the trainer's side.
        workers: for each worker, in the order of its ranks, ``binding`` (JSON) and ``location`` (node and GPU).

    Raises:
        BridgeError: a tensor of the trainer is used by no worker, or a need cannot be met.
    """
    bindings = [Binding.from_json(worker["binding"]) for worker in workers]
    missed = never_used(bindings)
    if missed:
        raise BridgeError(f"{len(missed)} of the trainer's tensors are used by no worker, first: `{missed[0]}`.")
    engine = Engine(
        parameters=tuple(needs(binding) for binding in bindings),
        locations=_locations([worker["location"] for worker in workers]),
    )
    return reshard(trainer.sources(), [engine], trainer.locations, round_bytes=trainer.round_bytes)


def restricted(message: Message, names: frozenset[str] | None) -> Message | None:
    """The part of a message that carries some tensors only; None if there is none. All of it for None."""
    if names is None:
        return message
    segments, offset = [], 0
    for segment in message.segments:
        if segment.source in names:
            segments.append(replace(segment, offset=offset))
            offset += aligned(segment.box.volume, ITEMSIZE[segment.wire])
    return replace(message, segments=tuple(segments), nbytes=offset) if segments else None


def _locations(pairs: Sequence[Sequence[int]]) -> tuple[Location, ...]:
    return tuple(Location(node=int(node), gpu=int(gpu)) for node, gpu in pairs)

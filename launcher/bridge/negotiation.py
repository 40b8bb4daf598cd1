"""Plan negotiation: both sides of a replica compute the same plan from the same facts, before a byte is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from launcher.bridge.plan import Engine, Message, Plan, Source, reshard
from launcher.bridge.plan.dtypes import ITEMSIZE
from launcher.bridge.plan.sharding import shards_of
from launcher.bridge.plan.split import aligned
from launcher.bridge.protocol import TrainerSpec, WorkerSpec
from launcher.bridge.weightmap import WeightMap, check_alike, requirements, unused_tensors
from launcher.common.errors import BridgeError


def replica_plan(trainer: TrainerSpec, workers: Sequence[WorkerSpec]) -> Plan:
    """The plan for one replica.

    Args:
        trainer: the trainer's side.
        workers: of the replica, in the order of their ranks.

    Raises:
        BridgeError: a tensor of the trainer is used by no worker, workers would load one parameter in different ways,
            or a requirement cannot be met.
    """
    weight_maps = [WeightMap.from_json(worker.weight_map) for worker in workers]
    check_alike(weight_maps)
    missed = unused_tensors(weight_maps)
    if missed:
        raise BridgeError(f"{len(missed)} of the trainer's tensors are used by no worker, first: `{missed[0]}`.")
    engine = Engine(
        parameters=tuple(requirements(weight_map) for weight_map in weight_maps),
        locations=tuple(worker.location for worker in workers),
    )
    return reshard(_sources(trainer), [engine], trainer.locations, round_bytes=trainer.round_bytes)


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


def _sources(trainer: TrainerSpec) -> dict[str, Source]:
    """The trainer's tensors in the planner's terms."""
    return {
        entry.name: Source(
            name=entry.name,
            shape=entry.shape,
            dtype=entry.dtype,
            shards=shards_of(trainer.placements[trainer.placement_of[entry.name]], entry.shape),
        )
        for entry in trainer.manifest
        if entry.alias_of is None
    }

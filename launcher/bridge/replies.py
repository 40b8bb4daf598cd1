"""What the bridge's messages carry: facts from which both sides compute a plan, and replies of engines and workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.bridge.plan.sharding import Placement
from launcher.bridge.plan.split import Location
from launcher.bridge.transport.choose import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedView:
    """A tensor of a checkpoint, or an even run of them, as a view of one tensor of the trainer."""

    name: str
    """In the checkpoint; of a run with ``*`` for the number, which counts from 0."""

    offset: int
    """In elements of the trainer's tensor, which is row-major."""

    split: tuple[int, ...]
    strides: tuple[int, ...]
    """The view before its dimensions are merged to ``shape``."""

    shape: tuple[int, ...]
    count: int = 1
    step: int = 0
    """Elements between the members of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor of the trainer, whole."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """torch's name without the module: ``bfloat16``."""

    alias_of: str | None = None
    """Its bytes are those of this earlier entry and are not sent."""

    saved: tuple[SavedView, ...] | None = None
    """What a checkpoint has of it; None: the whole, under its own name."""


Manifest = tuple[TensorEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSpec:
    """What the trainer holds, and where."""

    manifest: Manifest
    placements: tuple[Placement, ...]
    """How tensors lie on the trainer's ranks; each way once."""

    placement_of: dict[str, int]
    """By name of a tensor with bytes of its own: index into ``placements``."""

    locations: tuple[Location, ...]
    """Node and GPU of each trainer rank."""

    round_bytes: int
    """Most bytes that a receiver stages at a time."""

    adapter: dict[str, Any] | None = None
    """PEFT's description of the adapter whose matrices these are; None for the model's weights."""

    @classmethod
    def of(
        cls,
        *,
        manifest: Manifest,
        placements: Mapping[str, Placement],
        locations: tuple[Location, ...],
        round_bytes: int,
        adapter: Mapping[str, Any] | None = None,
    ) -> TrainerSpec:
        """From the placement of each tensor that has bytes of its own, by name."""
        number = {placement: index for index, placement in enumerate(dict.fromkeys(placements.values()))}
        return cls(
            manifest=manifest,
            placements=tuple(number),
            placement_of={name: number[placement] for name, placement in placements.items()},
            locations=locations,
            round_bytes=round_bytes,
            adapter=None if adapter is None else dict(adapter),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What one worker of a replica needs, and where it is."""

    weight_map: dict[str, Any]
    """JSON form of :class:`launcher.bridge.weightmap.WeightMap`."""

    location: Location
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConnected:
    """What one worker computed of the facts."""

    plan: str
    """Digest of its plan."""

    fingerprints: dict[str, str] = field(default_factory=dict)
    """By parameter, if the digest is not the trainer's: from these the first difference is found."""

    extra_bytes: int = 0
    """Memory that the worker takes between updates, besides what it serves from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """How far one worker is with receiving a version."""

    state: str
    """``idle``, ``receiving``, ``received`` or ``failed``."""

    version: int | None = None
    error: str | None = None
    digest: int | None = None
    """Checksum of what has arrived, an unsigned 64-bit integer; None if none is computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDone:
    """A worker's reply that says nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BindReply:
    """Reply to :class:`Bind`."""

    workers: tuple[WorkerSpec, ...]
    """In the order of their ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectReply:
    """Reply to :class:`Connect`."""

    workers: tuple[WorkerConnected, ...]
    version: int | None
    """That is served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionReply:
    """Reply that names the version that is served."""

    version: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteReply:
    """Reply to :class:`Vote`: every worker has received the version."""

    version: int
    digests: tuple[int | None, ...]
    """Checksum of what each worker received."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitReply:
    """Reply to :class:`Commit`."""

    version: int
    pause_s: float
    """Seconds for which the engine did not decode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PausedReply:
    """Whether the engine decodes."""

    paused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """Reply to :class:`GetInfo`."""

    version: int | None
    """Of the model's weights; None before the first commit."""

    state: str
    """``serving``, ``preparing`` or ``quarantined``."""

    preparing: int | None
    """The version of the model's weights that is being received."""

    updates: int
    """Commits of the model's weights since the engine started."""

    adapters: dict[str, int | None]
    """Version of each adapter that the bridge brought, by name."""

    paused: bool

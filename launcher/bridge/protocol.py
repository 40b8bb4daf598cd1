"""Every message of the bridge's control plane: trainer to engine over HTTP, engine to workers over its own RPC.

An operation is a dataclass, a :class:`BridgeRequest`; its name is written once, in the class, and its reply is a
dataclass, too. Both are encoded by :mod:`launcher.common.codec`. The engine's front end carries out a request itself,
or has its workers carry out the same one; three operations are for workers alone. In the order of an update::

    Bind        POST /bridge/bind        what each worker needs of the trainer's tensors
    Connect     POST /bridge/connect     compute the plan, compare its digest, open the links to the trainer's ranks
    RelayTo       POST /bridge/relay       from the next version on, send on to another replica what is received
    Prepare     POST /bridge/prepare     begin to receive a version beside the live weights
    Vote        POST /bridge/vote        wait until every worker has received it; checksums of what arrived
    Commit      POST /bridge/commit      pause, write, drop the prefix cache, stamp the version, resume
    Abort       POST /bridge/abort       forget what was received
    Disconnect  POST /bridge/disconnect  close the links
    GetInfo     GET  /bridge/info        the version that is served, and the state
    GetPaused, Pause, Resume             /bridge/is_paused, /bridge/pause, /bridge/resume
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from launcher.bridge.plan.sharding import Placement
from launcher.bridge.plan.split import Location
from launcher.bridge.transport.choose import Place
from launcher.common.codec import from_builtins

R = TypeVar("R")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeRequest(Generic[R]):
    """One operation; ``R`` is the type of its reply."""

    operation: ClassVar[str]
    method: ClassVar[str] = "POST"
    reply: ClassVar[type[Any]]

    restart_count: int | None = None
    """How often the trainers were restarted; None for whichever the engine knows of."""

    adapter: str | None = None
    """Name of the adapter that it is about; None for the model's weights."""

    lora_id: int | None = None
    """vLLM's number of the adapter; filled in by the engine for its workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GetInfo(BridgeRequest[ReplicaStatus]):
    """What the engine serves."""

    operation: ClassVar[str] = "info"
    method: ClassVar[str] = "GET"
    reply: ClassVar[type[Any]] = ReplicaStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class GetPaused(BridgeRequest[PausedReply]):
    """Whether the engine decodes."""

    operation: ClassVar[str] = "is_paused"
    method: ClassVar[str] = "GET"
    reply: ClassVar[type[Any]] = PausedReply


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause(BridgeRequest[PausedReply]):
    """Stop decoding at a step boundary."""

    operation: ClassVar[str] = "pause"
    reply: ClassVar[type[Any]] = PausedReply

    mode: str = "keep"
    """vLLM's: what becomes of running requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume(BridgeRequest[PausedReply]):
    """Decode again."""

    operation: ClassVar[str] = "resume"
    reply: ClassVar[type[Any]] = PausedReply


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind(BridgeRequest[BindReply]):
    """Learn how the trainer's tensors map into the workers'."""

    operation: ClassVar[str] = "bind"
    reply: ClassVar[type[Any]] = BindReply

    trainer: TrainerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRequest(BridgeRequest[R]):
    """What both ends of links know. Not an operation itself."""

    transport: str
    """``auto``, or the one that every pair shall have."""

    group: str
    """Distinguishes these links from all others of the run."""

    secret: str
    """Known to the two sides only."""

    store: str
    """``host:port`` of the trainer's rendezvous store."""

    directory: str | None = None
    """That both sides share, for the transport ``filesystem``."""

    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect(LinkRequest[ConnectReply]):
    """Compute the plan, and open the links if its digest is the trainer's."""

    operation: ClassVar[str] = "connect"
    reply: ClassVar[type[Any]] = ConnectReply

    workers: tuple[WorkerSpec, ...]
    plan: str
    """Digest of the trainer's plan."""

    places: tuple[Place, ...]
    """Of every trainer rank."""

    mode: str
    verify: bool
    relay_from: tuple[Place, ...] | None = None
    """Of the workers of the replica that sends everything on to this one; None if the trainer's ranks send it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayTo(LinkRequest[VersionReply]):
    """From the next version on, send on to another replica what is received."""

    operation: ClassVar[str] = "relay"
    reply: ClassVar[type[Any]] = VersionReply

    child: int
    """Index of the other replica."""

    places: tuple[Place, ...]
    """Of its workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare(BridgeRequest[VersionReply]):
    """Begin to receive a version beside the live weights."""

    operation: ClassVar[str] = "prepare"
    reply: ClassVar[type[Any]] = VersionReply

    version: int
    names: tuple[str, ...] | None = None
    """These tensors only; None for all."""

    base: int | None = None
    """Only what has changed since this version is sent; None for everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote(BridgeRequest[VoteReply]):
    """Wait until every worker has received the version."""

    operation: ClassVar[str] = "vote"
    reply: ClassVar[type[Any]] = VoteReply

    version: int
    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit(BridgeRequest[CommitReply]):
    """Put the version that was received in place of the one that is served."""

    operation: ClassVar[str] = "commit"
    reply: ClassVar[type[Any]] = CommitReply

    version: int
    releases: bool = True
    """Whether a restarted engine that waits for weights need not wait for others after these."""

    reset_prefix_cache: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort(BridgeRequest[VersionReply]):
    """Forget what was received."""

    operation: ClassVar[str] = "abort"
    reply: ClassVar[type[Any]] = VersionReply


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnect(BridgeRequest[VersionReply]):
    """Close the links; what is served stays."""

    operation: ClassVar[str] = "disconnect"
    reply: ClassVar[type[Any]] = VersionReply


@dataclass(frozen=True, slots=True, kw_only=True)
class GetStatus(BridgeRequest[WorkerStatus]):
    """To workers: how far they are with receiving a version."""

    operation: ClassVar[str] = "status"
    reply: ClassVar[type[Any]] = WorkerStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class StageAdapter(BridgeRequest[WorkerDone]):
    """To workers: do what can be done, and can fail, between the last byte and the pause."""

    operation: ClassVar[str] = "stage"
    reply: ClassVar[type[Any]] = WorkerDone


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop(BridgeRequest[WorkerDone]):
    """To workers: forget what was received."""

    operation: ClassVar[str] = "drop"
    reply: ClassVar[type[Any]] = WorkerDone


def _table(*operations: type[BridgeRequest[Any]]) -> dict[str, type[BridgeRequest[Any]]]:
    return {operation.operation: operation for operation in operations}


FROM_TRAINER = _table(
    GetInfo, GetPaused, Pause, Resume, Bind, Connect, RelayTo, Prepare, Vote, Commit, Abort, Disconnect
)
"""Operations of the bridge's HTTP routes, ``/bridge/NAME``, by name."""

TO_WORKER = _table(Bind, Connect, RelayTo, Prepare, GetStatus, StageAdapter, Commit, Drop, Disconnect)
"""Operations of the workers' RPC ``bridge_call(NAME, fields)``, by name."""

WORKER_REPLIES: dict[type[BridgeRequest[Any]], type[Any]] = {
    Bind: WorkerSpec,
    Connect: WorkerConnected,
    GetStatus: WorkerStatus,
}
"""What one worker replies; :class:`WorkerDone` to the others."""

FAILED = "failed"
"""Key of a worker's reply that holds why it could not carry out a request, and nothing else."""


def decode_worker_reply(request: BridgeRequest[Any], data: Mapping[str, Any]) -> Any:
    """One worker's reply to a request.

    Raises:
        CodecError: it is not one.
    """
    return from_builtins(dict(data), WORKER_REPLIES.get(type(request), WorkerDone))

"""Every message of the bridge's control plane: trainer to engine over HTTP, engine to workers over its own RPC.

An operation is a dataclass, a :class:`BridgeRequest`; its name is written once, in the class, and its reply is a
dataclass of :mod:`launcher.bridge.replies`. Both are encoded by :mod:`launcher.common.codec`. The engine's front end
carries out a request itself, or has its workers carry out the same one; three operations are for workers alone. In the
order of an update::

    Bind        POST /bridge/bind        what each worker needs of the trainer's tensors
    Connect     POST /bridge/connect     compute the plan, compare its digest, open the links to the trainer's ranks
    RelayTo     POST /bridge/relay       from the next version on, send on to another replica what is received
    Prepare     POST /bridge/prepare     begin to receive a version beside the live weights
    Vote        POST /bridge/vote        wait until every worker has received it; checksums of what arrived
    Commit      POST /bridge/commit      pause, write, drop the prefix cache, stamp the version, resume
    Abort       POST /bridge/abort       forget what was received
    Disconnect  POST /bridge/disconnect  close the links
    GetInfo     GET  /bridge/info        the version that is served, and the state
    GetPaused, Pause, Resume             /bridge/is_paused, /bridge/pause, /bridge/resume
"""

# Users of the protocol have the replies from here, too.
# ruff: noqa: PLC0414

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar, cast, get_args

from launcher.bridge.replies import BindReply as BindReply
from launcher.bridge.replies import CommitReply as CommitReply
from launcher.bridge.replies import ConnectReply as ConnectReply
from launcher.bridge.replies import Manifest as Manifest
from launcher.bridge.replies import PausedReply as PausedReply
from launcher.bridge.replies import ReplicaStatus as ReplicaStatus
from launcher.bridge.replies import SavedView as SavedView
from launcher.bridge.replies import TensorEntry as TensorEntry
from launcher.bridge.replies import TrainerSpec as TrainerSpec
from launcher.bridge.replies import VersionReply as VersionReply
from launcher.bridge.replies import VoteReply as VoteReply
from launcher.bridge.replies import WorkerConnected as WorkerConnected
from launcher.bridge.replies import WorkerDone as WorkerDone
from launcher.bridge.replies import WorkerSpec as WorkerSpec
from launcher.bridge.replies import WorkerStatus as WorkerStatus
from launcher.bridge.transport.choose import Place
from launcher.common.codec import from_builtins

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeRequest(Generic[R]):
    """One operation; ``R`` is the type of its reply."""

    operation: ClassVar[str]
    method: ClassVar[str] = "POST"

    restart_count: int | None = None
    """How often the trainers were restarted; None for whichever the engine knows of."""

    adapter: str | None = None
    """Name of the adapter that it is about; None for the model's weights."""

    lora_id: int | None = None
    """vLLM's number of the adapter; filled in by the engine for its workers."""

    @property
    def reply(self) -> type[Any]:
        """The type of its reply, as its class says it."""
        (found,) = get_args(type(self).__orig_bases__[0])  # type: ignore[attr-defined]
        return cast("type[Any]", found)


@dataclass(frozen=True, slots=True, kw_only=True)
class GetInfo(BridgeRequest[ReplicaStatus]):
    """What the engine serves."""

    operation: ClassVar[str] = "info"
    method: ClassVar[str] = "GET"


@dataclass(frozen=True, slots=True, kw_only=True)
class GetPaused(BridgeRequest[PausedReply]):
    """Whether the engine decodes."""

    operation: ClassVar[str] = "is_paused"
    method: ClassVar[str] = "GET"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause(BridgeRequest[PausedReply]):
    """Stop decoding at a step boundary."""

    operation: ClassVar[str] = "pause"

    mode: str = "keep"
    """vLLM's: what becomes of running requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume(BridgeRequest[PausedReply]):
    """Decode again."""

    operation: ClassVar[str] = "resume"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind(BridgeRequest[BindReply]):
    """Learn how the trainer's tensors map into the workers'."""

    operation: ClassVar[str] = "bind"

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

    child: int
    """Index of the other replica."""

    places: tuple[Place, ...]
    """Of its workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare(BridgeRequest[VersionReply]):
    """Begin to receive a version beside the live weights."""

    operation: ClassVar[str] = "prepare"

    version: int
    names: tuple[str, ...] | None = None
    """These tensors only; None for all."""

    base: int | None = None
    """Only what has changed since this version is sent; None for everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote(BridgeRequest[VoteReply]):
    """Wait until every worker has received the version."""

    operation: ClassVar[str] = "vote"

    version: int
    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit(BridgeRequest[CommitReply]):
    """Put the version that was received in place of the one that is served."""

    operation: ClassVar[str] = "commit"

    version: int
    releases: bool = True
    """Whether a restarted engine that waits for weights need not wait for others after these."""

    reset_prefix_cache: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort(BridgeRequest[VersionReply]):
    """Forget what was received."""

    operation: ClassVar[str] = "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnect(BridgeRequest[VersionReply]):
    """Close the links; what is served stays."""

    operation: ClassVar[str] = "disconnect"


@dataclass(frozen=True, slots=True, kw_only=True)
class GetStatus(BridgeRequest[WorkerStatus]):
    """To workers: how far they are with receiving a version."""

    operation: ClassVar[str] = "status"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageAdapter(BridgeRequest[WorkerDone]):
    """To workers: do what can be done, and can fail, between the last byte and the pause."""

    operation: ClassVar[str] = "stage"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop(BridgeRequest[WorkerDone]):
    """To workers: forget what was received."""

    operation: ClassVar[str] = "drop"


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

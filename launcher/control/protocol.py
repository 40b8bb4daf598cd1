"""Every operation of the control service: its name, its request and its reply, as dataclasses.

:mod:`launcher.control.wire` sends them. ``replica`` is a replica's index, ``node_rank`` a node's index in the
allocation, and ``restart_count`` how often the trainers or the replica had been restarted in this attempt: reports of
processes of an earlier count are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from launcher.control.model import Assignment, Phase, PoolMember, StopReason
from launcher.control.preflight_report import PreflightReport
from launcher.events.schema import Event, FailureReported
from launcher.events.serialize import event_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The state of the run, in every reply."""

    phase: Phase
    failure: FailureReported | None
    """What ended the run; None while nothing has."""

    stop_reason: StopReason | None
    all_nodes_left: bool
    """Each node that ever reported has left, or is lost."""

    time: float
    """Unix seconds by node 0's clock."""

    ok: Literal[True] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatReply(Reply):
    """Holds the assignment if it differs from the one that the node has."""

    assignment: Assignment | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ValuesReply(Reply):
    """Those of the values that are published."""

    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReply(Reply):
    """Every replica that is not dropped, in their order."""

    revision: int
    """Rises with every change of ``members``."""

    members: tuple[PoolMember, ...]


ReplyT_co = TypeVar("ReplyT_co", bound=Reply, covariant=True)


class ControlRequest(Generic[ReplyT_co]):
    """A request, by the type of its reply."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HelloRequest(ControlRequest[Reply]):
    """A node reports. The one that fills the last slot starts the run."""

    node_rank: int
    hostname: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatRequest(ControlRequest[HeartbeatReply]):
    """A node renews its lease. Answered at once if something has changed, otherwise after ``wait_s``."""

    node_rank: int
    phase: Phase
    """The last one that the node received."""

    revision: int | None = None
    """Of the node's assignment; None if it wants none."""

    wait_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightRequest(ControlRequest[Reply]):
    """What a node's checks found."""

    report: PreflightReport


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMasterRequest(ControlRequest[Reply]):
    """The first node of a replica over several nodes publishes its rendezvous address."""

    replica: int
    restart_count: int
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReadyRequest(ControlRequest[Reply]):
    """An engine answers ``/health``."""

    replica: int
    restart_count: int
    url: str
    seconds: float
    """Since its process started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessEndedRequest(ControlRequest[Reply]):
    """A process ended that should not have, or not like this; or it hung, and was killed."""

    node_rank: int
    role: str
    """``trainer`` or ``inference``, otherwise the name of a helper."""

    rank: int
    """Trainer: its rank. Inference: the replica."""

    restart_count: int
    exit_code: int | None
    """``-N`` if signal N ended it; None if it hung."""

    failure: FailureReported
    """The failure of the run, if this ends it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRequest(ControlRequest[Reply]):
    """The trainers' bridge has published a version of the weights."""

    restart_count: int
    """Of the trainers."""

    version: int
    replicas: Mapping[int, int]
    """Those that serve it: replica -> its restart count."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the event ``published``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainersDoneRequest(ControlRequest[Reply]):
    """Every trainer rank of a node ended with 0."""

    node_rank: int
    restart_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLeftRequest(ControlRequest[Reply]):
    """A node has ended all its processes and leaves."""

    node_rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLostRequest(ControlRequest[Reply]):
    """A node takes no part any more."""

    node_rank: int
    failure: FailureReported


@dataclass(frozen=True, slots=True, kw_only=True)
class FailRequest(ControlRequest[Reply]):
    """Something failed that ends the run."""

    failure: FailureReported


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalRequest(ControlRequest[Reply]):
    """A node received a signal to end; what it means is decided on node 0."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRunRequest(ControlRequest[Reply]):
    """The run is to save a checkpoint and end. A better known reason replaces the one before."""

    reason: StopReason


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequest(ControlRequest[Reply]):
    """The run is to end at once."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PutRequest(ControlRequest[Reply]):
    """Publishes a value to the whole run; see :mod:`launcher.control.model`."""

    key: str
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class GetRequest(ControlRequest[ValuesReply]):
    """Answered as soon as all values are published, at the latest after ``wait_s``."""

    keys: tuple[str, ...] = ()
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRequest(ControlRequest[PoolReply]):
    """Answered as soon as the pool is no longer at ``revision``, at the latest after ``wait_s``."""

    revision: int | None = None
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRequest(ControlRequest[Reply]):
    """Adds an event to the run's log; the time is set by the control service."""

    event: str
    fields: Mapping[str, Any]

    @classmethod
    def of(cls, event: Event) -> EventRequest:
        """The request that adds ``event``."""
        return cls(event=event.event_name, fields=event_fields(event))


OPERATIONS: Mapping[str, tuple[type[ControlRequest[Reply]], type[Reply]]] = {
    "hello": (HelloRequest, Reply),
    "heartbeat": (HeartbeatRequest, HeartbeatReply),
    "preflight": (PreflightRequest, Reply),
    "engine_master": (EngineMasterRequest, Reply),
    "engine_ready": (EngineReadyRequest, Reply),
    "process_ended": (ProcessEndedRequest, Reply),
    "published": (PublishedRequest, Reply),
    "trainers_done": (TrainersDoneRequest, Reply),
    "node_left": (NodeLeftRequest, Reply),
    "node_lost": (NodeLostRequest, Reply),
    "fail": (FailRequest, Reply),
    "signal": (SignalRequest, Reply),
    "stop": (StopRunRequest, Reply),
    "cancel": (CancelRequest, Reply),
    "put": (PutRequest, Reply),
    "get": (GetRequest, ValuesReply),
    "pool": (PoolRequest, PoolReply),
    "event": (EventRequest, Reply),
}
"""Every operation: its name, its request and its reply."""

"""What the control service and its clients share: the phases of an attempt, a node's assignment, the replicas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum


class Phase(StrEnum):
    """Phases of an attempt. They only move forward."""

    STARTING = "starting"
    """Not every node has reported yet."""

    CHECKING = "checking"
    """Preflight: every node has reported; each checks itself and its peers before anything is started."""

    RUNNING = "running"
    DRAINING = "draining"
    """The trainer has finished; engines finish their requests and exit."""

    FINISHED = "finished"
    """Everything ended as it should."""

    FAILED = "failed"
    """Something failed; every agent ends what it started."""

    STOPPED = "stopped"
    """The run stopped after a checkpoint; a later attempt continues it."""

    CANCELLED = "cancelled"
    """The run was ended at once, on request."""


ENDED = frozenset({Phase.FINISHED, Phase.FAILED, Phase.STOPPED, Phase.CANCELLED})


class StopStage(IntEnum):
    """How far a stop has come. It only rises; every agent receives each rise with its assignment."""

    NO = 0
    REQUESTED = 1
    """The trainer is to save a checkpoint and end."""

    ACKNOWLEDGED = 2
    """The trainer knows, on all of its ranks: from here on the engines end, beside the checkpoint."""


class StopReason(StrEnum):
    """Why a run is to stop after a checkpoint."""

    REQUEST = "request"
    REQUEUE = "requeue"
    PREEMPTION = "preemption"
    TIME_LIMIT = "time limit"

    def replaces(self, other: StopReason | None) -> bool:
        """Whether this is better known than ``other``.

        A request is what remains when SLURM names no other reason, and a requeue is what a preemption looks like before
        SLURM says more.
        """
        return other is None or _CERTAINTY[self] > _CERTAINTY[other]


_CERTAINTY = {
    StopReason.REQUEST: 0,
    StopReason.REQUEUE: 1,
    StopReason.PREEMPTION: 2,
    StopReason.TIME_LIMIT: 2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerAssignment:
    """The trainer ranks of a node."""

    restart_count: int
    """Ranks of an earlier count are to be ended."""

    may_start: bool
    """Whether they may be started now; ranks that run already go on."""

    store: str | None = None
    """``host:port`` of their rendezvous store."""

    urls: tuple[str, ...] = ()
    """The engines' URLs at this moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaAssignment:
    """A node's part of a replica."""

    restart_count: int
    """Processes of an earlier count are to be ended."""

    may_start: bool
    """Whether it may be started now; processes that run already go on."""

    url: str | None = None
    """Where it listens; None until it has published that."""

    master: str | None = None
    """Rendezvous, ``host:port``, of a replica over several nodes; None until its first node has published it."""

    awaits_weights: bool = False
    """Its own weights are out of date: it may answer no request before the trainer has sent new ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Everything that one node is to run."""

    revision: int = -1
    """Rises with every change."""

    slot: int | None = None
    """Index into the layout's nodes; None while the node is a spare."""

    is_fenced: bool = False
    """The node counts as lost: it ends all that it runs, at once."""

    stop_stage: StopStage = StopStage.NO
    trainers: TrainerAssignment | None = None
    replicas: Mapping[int, ReplicaAssignment] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolMember:
    """One replica that serves, or will."""

    replica: int
    restart_count: int
    state: str
    """``starting``, ``ready`` or ``restarting``."""

    url: str | None
    serves: bool
    """It is healthy and has the newest weights."""

    @property
    def is_ready(self) -> bool:
        """Whether it is healthy; its weights may be old."""
        return self.state == "ready"


MODEL_READY = "model/ready"
"""True once the directory of the model is complete."""

STORE_HELPER = "store"
"""Name of the process that serves :data:`STORE`."""

CONNECTED = "bridge/connected"
"""True once a trainer has opened the bridge: engines that start later wait for its weights."""

TRAINER_RESTART_COUNT = "trainer/restart_count"
"""How often the trainers were restarted in this attempt; each start of them has a store of its own."""

STORE = "trainer/store"
"""``host:port`` of the rendezvous store of the trainers' first start; see :func:`store_key`."""

STOP_ACKNOWLEDGED = "trainer/stop_acknowledged"
"""True once all ranks of the trainer know that the run stops; the engines may end."""

ALL_URLS = "inference/urls"
"""URLs of all replicas, in their order; one value, so that a node needs one request for them."""

REPLICA_PREFIX = "replica/"


def store_key(restart_count: int) -> str:
    """Key under which the store of one start of the trainers is published."""
    return STORE if restart_count == 0 else f"{STORE}/{restart_count}"


def url_key(replica: int) -> str:
    """Key under which a replica publishes where it listens."""
    return f"{REPLICA_PREFIX}{replica}/url"

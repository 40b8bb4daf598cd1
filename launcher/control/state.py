"""The state of a run, as plain data. Node 0's agent keeps the one copy; :mod:`launcher.control.transitions` changes it.

A *slot* is an index into the layout's nodes, a *node* an index into the allocation's. At first both are the same; they
differ once a spare has taken a slot. Times are seconds of the clock that the caller of the transitions uses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from launcher.config.schema import RestartConfig
from launcher.control.model import TRAINER_RESTART_COUNT, Phase, StopReason, StopStage
from launcher.control.preflight_report import BadNode, PreflightReport
from launcher.events.schema import FailureReported
from launcher.layout.model import Layout, Node, Replica, Role

Version = tuple[int, int]
"""Restart count of the trainers and number of the version; versions are ordered by both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSettings:
    """What the transitions follow; does not change during an attempt."""

    layout: Layout
    start_timeout_s: float
    """Longest wait for all nodes to report."""

    lease_timeout_s: float
    """A node that sends nothing for longer is lost."""

    has_preflight: bool = False
    """Every node is checked before anything is started."""

    preflight_timeout_s: float = 60.0
    """Longest wait for the preflight reports of all nodes."""

    bad_nodes_fail: bool = True
    """A bad node may not take part; else it is only reported."""

    restart: RestartConfig = field(default_factory=RestartConfig)
    min_replicas: int = 1
    """Replicas without which training cannot go on."""

    stop_timeout_s: float = 60.0
    """Longest wait for the trainer to end, once a stop was requested."""

    write_timeout_s: float = 300.0
    """Longest wait for a checkpoint that is being written."""


@dataclass(slots=True, kw_only=True)
class NodeRecord:
    """A node of the allocation."""

    hostname: str
    slot: int | None
    """The slot that it holds; None for a spare and for a lost node."""

    last_contact: float | None = None
    """None until it has reported."""

    is_lost: bool = False
    """It takes no part any more, and never will again."""

    has_left: bool = False
    """It has ended all its processes."""

    revision: int = 0
    """Of its assignment."""

    @property
    def is_up(self) -> bool:
        """It has reported and was not lost."""
        return self.last_contact is not None and not self.is_lost


class ReplicaState(StrEnum):
    """What a replica is doing."""

    STARTING = "starting"
    """Its processes run, or are about to; it has not answered yet."""

    READY = "ready"
    RESTARTING = "restarting"
    """Its processes are ended; they start again after a pause."""

    DROPPED = "dropped"
    """It does not come back."""


@dataclass(slots=True, kw_only=True)
class ReplicaRecord:
    """One replica."""

    replica: Replica
    state: ReplicaState = ReplicaState.STARTING
    restart_count: int = 0
    restart_times: list[float] = field(default_factory=list)
    """Of the restarts that count against the limit."""

    starts_at: float = 0.0
    """When the pause before its next start is over."""

    url: str | None = None
    last_url: str | None = None
    """As ``url``, but kept over restarts."""

    master: str | None = None
    """Rendezvous, ``host:port``, of a replica over several nodes."""

    version: Version | None = None
    """The weights that it serves; None for those that it was started with."""

    @property
    def index(self) -> int:
        """Its index in the layout."""
        return self.replica.index

    @property
    def runs(self) -> bool:
        """Whether its processes should exist."""
        return self.state in (ReplicaState.STARTING, ReplicaState.READY)


@dataclass(slots=True, kw_only=True)
class TrainersRecord:
    """All trainer ranks: they start, end and restart together."""

    slots: frozenset[int]
    """Slots that hold trainer ranks."""

    restart_count: int = 0
    restart_times: list[float] = field(default_factory=list)
    done: set[int] = field(default_factory=set)
    """Slots whose ranks have all ended with 0."""

    started_at: float | None = None
    """When everything was there that this start of them needs."""

    has_progressed: bool = False
    """Whether the trainers have ever finished a step, or published a version."""

    last_step_at: float | None = None
    """When this start of them finished its last step."""

    held_failure: FailureReported | None = None
    """An early failure that waits for a better explanation from another rank."""

    held_since: float = 0.0


@dataclass(slots=True, kw_only=True)
class StopRecord:
    """The stop after a checkpoint."""

    stage: StopStage = StopStage.NO
    reason: StopReason | None = None
    requested_at: float = 0.0
    writing_since: float | None = None
    """Since when a checkpoint is being written, whether or not the run is to stop; None while none is."""


@dataclass(slots=True, kw_only=True)
class PreflightRecord:
    """The checks before the start."""

    reports: dict[int, PreflightReport] = field(default_factory=dict)
    since: float = 0.0
    """When every node had reported."""

    is_comparing: bool = False
    """The reports are being compared."""

    bad_nodes: tuple[BadNode, ...] = ()


@dataclass(slots=True, kw_only=True)
class ControlState:
    """Everything that the control service knows."""

    settings: ControlSettings
    began: float
    """When the wait for the nodes began."""

    nodes: list[NodeRecord]
    slots: list[int | None]
    """The node that holds each slot; None if it was lost and no spare has taken it."""

    replicas: list[ReplicaRecord]
    trainers: TrainersRecord
    phase: Phase = Phase.STARTING
    stop: StopRecord = field(default_factory=StopRecord)
    preflight: PreflightRecord = field(default_factory=PreflightRecord)
    failure: FailureReported | None = None
    """What ended the run; None while nothing has."""

    is_failure_held: bool = False
    """``failure`` ends the run as soon as the checkpoint that is being written is complete."""

    published: Version | None = None
    """The last version of the weights."""

    pool_revision: int = 0
    """Rises with every change of the pool."""

    was_any_engine_ready: bool = False
    values: dict[str, Any] = field(default_factory=dict)


def new_state(settings: ControlSettings, now: float) -> ControlState:
    """The state at the beginning of an attempt."""
    layout = settings.layout
    return ControlState(
        settings=settings,
        began=now,
        nodes=[
            NodeRecord(hostname=node.hostname, slot=index if index < len(layout.nodes) else None)
            for index, node in enumerate(layout.all_nodes)
        ],
        slots=list(range(len(layout.nodes))),
        replicas=[ReplicaRecord(replica=replica) for replica in layout.replicas],
        trainers=TrainersRecord(slots=frozenset(n.node_rank for n in layout.nodes if has_trainers(n))),
        values={TRAINER_RESTART_COUNT: 0},
    )


def has_trainers(node: Node) -> bool:
    """Whether trainer ranks run on a node of the layout."""
    return any(process.role is Role.TRAINER for process in node.processes)

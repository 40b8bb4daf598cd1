"""The state of a run: plain data that :mod:`launcher.events.fold` fills, and what is derived from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from launcher.common.text import duration
from launcher.events import schema

QUEUE = "queue"
LAUNCH = "launch"
NODES = "nodes"
ENGINE = "engine"
FIRST_STEP = "first step"
JOB = "job"
"""``who`` of the phases of the whole run."""


class ProcessStatus(StrEnum):
    """What a process of a role is doing."""

    WAITING = "waiting"
    """Not started yet."""

    STARTING = "starting"
    RUNNING = "running"
    """A trainer rank that has come to its first step; an engine that answers."""

    ENDED = "ended"
    FAILED = "failed"
    """It was the first that failed, or its replica doesn't come back."""

    VICTIM = "victim"
    """It failed after another process had failed."""

    LOST = "lost"
    """Its node is lost."""


@dataclass(slots=True, kw_only=True)
class ProcessRecord:
    """A process that was started in this attempt."""

    name: str
    status: ProcessStatus
    role: str | None = None
    rank: int | None = None
    node_rank: int | None = None
    exit_code: int | None = None


@dataclass(slots=True, kw_only=True)
class StartupPhase:
    """One phase of one process's start-up; ``end`` is None while it lasts. Times are unix seconds."""

    name: str
    who: str
    begin: float
    end: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseGroup:
    """The same phase of all processes that have it."""

    name: str
    members: tuple[StartupPhase, ...]
    done: int
    total: int

    @property
    def is_open(self) -> bool:
        """Whether a process is still in it."""
        return any(phase.end is None for phase in self.members)

    @property
    def waiting(self) -> list[str]:
        """Processes still in it."""
        return [phase.who for phase in self.members if phase.end is None]

    def elapsed(self, now: float) -> float:
        """Seconds from the first begin to the last end, or to ``now``."""
        return max(now if p.end is None else p.end for p in self.members) - min(p.begin for p in self.members)

    def longest_wait(self, now: float) -> float:
        """The longest time that a process has been in it so far, in seconds; 0 when none is."""
        return max((now - p.begin for p in self.members if p.end is None), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineEntry:
    """One restart, loss, checkpoint or the like, in one line."""

    time: float
    kind: str
    """The name of the event."""

    text: str
    is_bad: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PastAttempt:
    """An attempt that was followed by another one."""

    attempt: int
    outcome: str
    step: int | None


@dataclass(slots=True, kw_only=True)
class AttemptState:
    """What is forgotten when another attempt begins."""

    attempt: int | None = None
    started_at: float | None = None
    """When node 0's agent began."""

    first_step_at: float | None = None
    draining_at: float | None = None
    finished_at: float | None = None
    outcome: str | None = None
    seconds: float | None = None
    cancelled: schema.RunCancelled | None = None
    requeued: schema.JobRequeued | None = None
    stopping: schema.StopRequested | None = None
    """The first request to end with a checkpoint."""

    phases: list[StartupPhase] = field(default_factory=list)
    open_phases: dict[tuple[str, str], StartupPhase] = field(default_factory=dict)
    """Those of ``phases`` that last, by name and process."""

    begun_phases: set[tuple[str, str]] = field(default_factory=set)
    open_by_process: dict[str, set[str]] = field(default_factory=dict)
    """Names of the open phases by process: with thousands of processes no event may search those of all others."""

    nodes_up: dict[int, str] = field(default_factory=dict)
    """Hostname by node rank."""

    node_roles: dict[int, str] = field(default_factory=dict)
    node_addresses: dict[int, str] = field(default_factory=dict)
    processes: dict[str, ProcessRecord] = field(default_factory=dict)
    """By name."""

    has_new_trainers: bool = False
    """A trainer process was started since the last step."""

    engines: dict[int, str] = field(default_factory=dict)
    """URL by replica, of the replicas that are ready now."""

    replica_states: dict[int, str] = field(default_factory=dict)
    """By replica: the state of the last ``replica`` event."""

    versions: dict[int, int] = field(default_factory=dict)
    """Version that each replica serves."""

    recent_versions: list[tuple[int, frozenset[int]]] = field(default_factory=list)
    """The last versions, with the replicas that took each."""

    restarts: dict[str, int] = field(default_factory=dict)
    """By what was restarted: ``engine``, ``trainer``."""

    node_losses: dict[int, schema.NodeLost] = field(default_factory=dict)
    """By node rank."""

    spares: dict[int, str] = field(default_factory=dict)
    """Hostname of the spare by the slot that it took."""

    preflight: dict[int, bool] = field(default_factory=dict)
    """Whether each node passed."""

    clock_offsets: dict[int, tuple[float, float]] = field(default_factory=dict)
    """By node: how far its clock is ahead of node 0's and the error of that, in seconds."""

    checks: list[schema.CheckReported] = field(default_factory=list)
    failures: list[schema.FailureReported] = field(default_factory=list)
    resumed_step: int | None = None
    """Step of the checkpoint that training went on from."""


@dataclass(slots=True, kw_only=True)
class RunState(AttemptState):
    """A run: its newest attempt, and what stays from one attempt to the next."""

    deadlines: dict[str, float] = field(default_factory=dict)
    """Longest wait in seconds, by phase."""

    run_dir: str | None = None
    cluster: str | None = None
    job_id: str | None = None
    nodes: int | None = None
    trainer_nodes: int | None = None
    inference_nodes: int | None = None
    world_size: int | None = None
    replicas: int | None = None
    steps_planned: int | None = None
    steps: list[schema.StepFinished] = field(default_factory=list)
    began_at: float | None = None
    """Submission, or the first event when that was not recorded."""

    last_at: float = 0.0
    """Of the last event."""

    timeline: list[TimelineEntry] = field(default_factory=list)
    past_attempts: list[PastAttempt] = field(default_factory=list)
    checkpoint_step: int | None = None
    """Step of the newest complete checkpoint."""

    has_published: bool = False
    """Whether the log says which replicas take each version."""

    @property
    def last_step(self) -> schema.StepFinished | None:
        """The newest step."""
        return self.steps[-1] if self.steps else None

    @property
    def failure(self) -> schema.FailureReported | None:
        """The first failure, which is the cause; what failed after it is its victim."""
        return self.failures[0] if self.failures else None

    @property
    def cancel_reason(self) -> str | None:
        """The reason of the cancellation."""
        return self.cancelled.message if self.cancelled is not None else None

    @property
    def stop_reason(self) -> str | None:
        """Why the run is to end with a checkpoint; None if it isn't."""
        return None if self.stopping is None else self.stopping.reason or "requested"

    @property
    def lost_nodes(self) -> dict[int, str]:
        """Hostname by node rank."""
        return {node: event.hostname or f"node {node}" for node, event in self.node_losses.items()}

    def groups(self) -> list[PhaseGroup]:
        """Phases in the order they began, each with the latest of every process that had it."""
        by_name: dict[str, dict[str, StartupPhase]] = {}
        for phase in self.phases:
            by_name.setdefault(phase.name, {})[phase.who] = phase
        known = {NODES: (len(self.nodes_up), self.nodes), ENGINE: (len(self.engines), self.replicas)}
        groups = []
        for name, members in by_name.items():
            done, total = known.get(name, (sum(p.end is not None for p in members.values()), None))
            total = max(total or len(members), done)
            groups.append(PhaseGroup(name=name, members=tuple(members.values()), done=done, total=total))
        return groups

    def ending(self) -> str:
        """``completed after 2 min 14 s``; with the reason of a cancellation."""
        reason = f": {self.cancel_reason}" if self.cancel_reason else ""
        return f"{self.outcome} after {duration(self.elapsed(self.last_at))}{reason}"

    def elapsed(self, now: float) -> float:
        """Seconds since the submission, until the end if there was one."""
        end = self.finished_at if self.finished_at is not None else max(now, self.last_at)
        return end - self.began_at if self.began_at is not None else 0.0

    def startup_seconds(self) -> float | None:
        """Seconds from submission to the first step of this attempt."""
        if self.first_step_at is None or self.began_at is None:
            return None
        return self.first_step_at - self.began_at

    def step_seconds(self) -> float | None:
        """Median seconds between the last twenty steps."""
        times = [step.time for step in self.steps[-21:]]
        gaps = sorted(b - a for a, b in pairwise(times))
        return gaps[len(gaps) // 2] if gaps else None

"""Events of nodes and processes: what started and ended, what failed, and what followed."""

from __future__ import annotations

import signal
from dataclasses import field
from typing import Any, Literal

from launcher.events.failure_kinds import FailureKind
from launcher.events.schema.base import Event, event_kind


@event_kind("node_up")
class NodeJoined(Event):
    """A node's agent connected to the control service. Written by the control service."""

    node_rank: int
    hostname: str | None = None
    role: str | None = None
    """``trainer``, ``inference`` or ``spare``."""

    role_rank: int | None = None
    """Rank among the nodes of its role; None for a spare."""

    address: str | None = None
    """IP address that the other nodes reach it at."""


@event_kind("preflight")
class PreflightFinished(Event):
    """What the checks of one node found before anything started. Written by the control service, for all nodes."""

    node_rank: int
    hostname: str | None = None
    ok: bool = False
    """Whether the node may take part."""

    seconds: float | None = None
    clock_s: float | None = None
    """How far the node's clock is ahead of node 0's."""

    clock_error_s: float | None = None
    """The error bound of ``clock_s``."""

    checks: list[dict[str, Any]] = field(default_factory=list)
    """One object per check: ``name``, ``ok`` and ``text``."""


@event_kind("process")
class ProcessChanged(Event):
    """A process of a role started or ended. Written by the agent of its node."""

    name: str
    """``trainer-0003``, ``inference-1``, ``inference-1.1`` (the second node of a replica), or a helper's name."""

    state: Literal["started", "ended"]
    role: str | None = None
    """``trainer``, ``inference`` or ``helper``."""

    node_rank: int | None = None
    rank: int | None = None
    """Trainer: global rank. Inference: replica."""

    restart_count: int | None = None
    """How often the trainers, or this replica, had been restarted in this attempt when it started."""

    pid: int | None = None
    exit_code: int | None = None
    """Of an ended process; ``-N`` if signal N ended it."""


@event_kind("engine_ready")
class EngineReady(Event):
    """An engine answers ``/health`` for the first time since it started. Written by the control service."""

    replica: int
    url: str | None = None
    seconds: float | None = None
    """Since its process started."""

    restart_count: int | None = None
    """Restarts of the replica in this attempt so far."""


@event_kind("replica")
class ReplicaChanged(Event):
    """A replica changed its state after the start-up. Written by the control service."""

    replica: int
    state: str
    """``lost`` (its node is gone), ``restarting``, ``ready`` (serves the current weights again) or ``dropped``."""

    reason: str | None = None
    url: str | None = None
    version: int | None = None
    """Version of the weights that it serves."""


@event_kind("restart")
class RestartScheduled(Event):
    """Processes start again inside the attempt. Written by the control service."""

    what: str = "process"
    """``engine``: one replica. ``trainer``: all trainer ranks together."""

    replica: int | None = None
    counted_restarts: int | None = None
    """Restarts that count against the limit now, with this one."""

    max_restarts: int | None = None
    """The limit: `restart.max_engine_restarts` or `restart.max_trainer_restarts`."""

    reason: str | None = None
    delay_s: float | None = None
    """Back-off before the start."""


@event_kind("node_lost")
class NodeLost(Event):
    """A node no longer takes part. Written by the control service."""

    node_rank: int
    hostname: str | None = None
    role: str | None = None
    reason: str | None = None


@event_kind("spare")
class SpareAssigned(Event):
    """A spare node took a slot of the layout whose node was lost. Written by the control service."""

    slot: int
    """The slot: index into the layout's nodes."""

    node_rank: int | None = None
    """Of the spare."""

    hostname: str | None = None
    role: str | None = None


@event_kind("failure")
class FailureReported(Event):
    """A process, a node or the start-up failed and the run ends by it or after it. The agent of the node (or the
    control service, for a node that doesn't answer) determines the kind; written by the control service."""

    message: str = "a process failed"
    """One sentence for a person: who, where, how."""

    kind: FailureKind | None = None
    """None in the logs of versions that did not write it."""

    is_symptom: bool = False
    """The process failed because another one did, by what its log says: a connection that was closed, for example."""

    line: str | None = None
    """The line of the log that explains most."""

    first: bool = False
    """The failure that ends the run. Those after it are consequences."""

    process: str | None = None
    """Name of the process; None for a node."""

    role: str | None = None
    rank: int | None = None
    node_rank: int | None = None
    hostname: str | None = None
    exit_code: int | None = None
    """``-N`` if signal N ended it; None if it didn't end, but hung and was killed."""

    at: float | None = None
    """When the node noticed it, in unix seconds by the node's own clock."""

    log: str | None = None
    """Path of the process's log."""

    tail: list[str] = field(default_factory=list)
    """Last lines of that log."""

    launcher_exit_code: int | None = None
    """Exit code that the run ends with because of it."""

    requeue: bool = False
    """Another allocation can go on: the job is queued again if the limits allow it."""

    bad_nodes: list[str] = field(default_factory=list)
    """Hostnames of the nodes whose preflight failed."""

    @property
    def where(self) -> str:
        """``inference 1 on node 3 (gpu-07)``, with what is known."""
        parts = [" ".join(str(x) for x in (self.role, self.rank) if x is not None)]
        if self.node_rank is not None:
            parts.append(f"on node {self.node_rank}")
        if self.hostname is not None:
            parts.append(f"({self.hostname})")
        return " ".join(part for part in parts if part)

    @property
    def how(self) -> str:
        """``exit code 1`` or ``signal 9 (SIGKILL)``; empty when the process did not end."""
        return "" if self.exit_code is None else describe_exit(self.exit_code)


def describe_exit(code: int) -> str:
    """``exit code 1``, or ``signal 9 (SIGKILL)`` for -9."""
    if code >= 0:
        return f"exit code {code}"
    names = {int(signum): signum.name for signum in signal.Signals}
    return f"signal {-code} ({names.get(-code, '?')})"

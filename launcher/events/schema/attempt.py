"""Events of the run and its attempts: submission, start-up, stop, end."""

from __future__ import annotations

from typing import Literal

from launcher.events.schema.base import Event, event_kind


@event_kind("submitted")
class RunSubmitted(Event):
    """The run was submitted; ``time`` is the submission's. Written by node 0 from ``submission.json``."""

    cluster: str | None = None
    """``local`` or ``slurm``."""

    run_dir: str | None = None
    nodes: int | None = None
    """Nodes requested, with the spares."""

    job_id: str | None = None
    """SLURM's job id; None for a local run."""


@event_kind("attempt")
class AttemptStarted(Event):
    """An attempt began: node 0's agent runs and knows the layout. Written by node 0's agent."""

    attempt: int = 1
    """Counts the starts of the run, from 1."""

    job_id: str | None = None
    nodes: int | None = None
    """Nodes of the layout, without spares."""

    spares: int | None = None
    trainer_nodes: int | None = None
    inference_nodes: int | None = None
    world_size: int | None = None
    """Trainer ranks."""

    replicas: int | None = None


@event_kind("phase")
class PhaseChanged(Event):
    """A phase of the start-up began or ended. Written by the process that is in it; rank 0 stands for all trainers."""

    phase: str
    """``load engine``, ``imports``, ``first sync``, ``first step``, ..."""

    who: str
    """Name of the process, or ``job``."""

    state: Literal["begin", "end"]


@event_kind("stopping")
class StopRequested(Event):
    """The run is to write a checkpoint and end: a preemption, the time limit, a person. Written by the control
    service; written once more, with ``overdue``, if it ended without the checkpoint."""

    reason: str | None = None
    overdue: bool = False
    after_s: float | None = None
    """Seconds since the request, when overdue."""


@event_kind("cancelled")
class RunCancelled(Event):
    """The run is to end at once. Written by the control service."""

    message: str | None = None


@event_kind("draining")
class EnginesDraining(Event):
    """All trainer ranks ended with 0; the engines finish their requests and end. Written by the control service."""


@event_kind("requeued")
class JobRequeued(Event):
    """SLURM starts the job again. Written by node 0's agent, or by the node that takes over from it."""

    reason: str | None = None
    """How this attempt ended: ``preempted``, ``timed out``, ``failed``, ``lost``, ...."""

    attempt: int | None = None
    """Number of the next attempt."""


@event_kind("finished")
class AttemptFinished(Event):
    """The last event of an attempt. Written by node 0's agent; by its shim or another node if the agent was killed."""

    outcome: str = "completed"
    """``completed``, ``failed``, ``cancelled``, ``stopped`` (with a checkpoint) or ``requeued``."""

    seconds: float | None = None
    """Since the agent started."""

    reason: str | None = None
    """Why the job was not queued again, if it should have been."""

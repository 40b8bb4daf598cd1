"""Every kind of event in a run's ``events.jsonl``, as a dataclass.

A line of the log holds the fields of one event, ``event``, the name of its kind, and ``time``. Fields that are None are
left out. ``python -m launcher.events.reference`` renders these classes as a page of the documentation.
"""

from launcher.events.schema.base import EVENT_KINDS, Event, UnknownEvent
from launcher.events.schema.supervision import (
    AttemptFinished,
    AttemptStarted,
    EngineReady,
    EnginesDraining,
    FailureReported,
    JobRequeued,
    NodeJoined,
    NodeLost,
    PhaseChanged,
    PreflightFinished,
    ProcessChanged,
    ReplicaChanged,
    RestartScheduled,
    RunCancelled,
    RunSubmitted,
    SpareAssigned,
    StopRequested,
)
from launcher.events.schema.training import (
    AdapterPublished,
    AnswersChecked,
    CheckpointChanged,
    CheckpointLoaded,
    CheckReported,
    MomentReached,
    StepFinished,
    WeightsPublished,
)

__all__ = [
    "EVENT_KINDS",
    "AdapterPublished",
    "AnswersChecked",
    "AttemptFinished",
    "AttemptStarted",
    "CheckReported",
    "CheckpointChanged",
    "CheckpointLoaded",
    "EngineReady",
    "EnginesDraining",
    "Event",
    "FailureReported",
    "JobRequeued",
    "MomentReached",
    "NodeJoined",
    "NodeLost",
    "PhaseChanged",
    "PreflightFinished",
    "ProcessChanged",
    "ReplicaChanged",
    "RestartScheduled",
    "RunCancelled",
    "RunSubmitted",
    "SpareAssigned",
    "StepFinished",
    "StopRequested",
    "UnknownEvent",
    "WeightsPublished",
]

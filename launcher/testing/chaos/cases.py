"""What is done to a run, at which moments, and what must follow by the policy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Moment(StrEnum):
    """When a fault is injected."""

    START = "start-up"
    """The target has just been started."""

    STEP = "mid-step"
    PUBLISH = "mid-publish"
    CHECKPOINT = "mid-checkpoint"


THREE = (Moment.START, Moment.STEP, Moment.PUBLISH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What must follow."""

    outcome: str = "completed"
    attempts: int = 1
    """How often the run starts."""

    required: frozenset[str] = frozenset()
    """Events that must come, as :func:`launcher.testing.chaos.judge.label` names them."""

    forbidden: frozenset[str] = frozenset()
    """Events that must not come."""

    is_noticed: bool = True
    """Whether the run must record an event within :data:`launcher.testing.chaos.judge.HANG_S`."""


ENGINE_RESTARTS = Policy(required=frozenset({"restart engine"}), forbidden=frozenset({"restart trainer", "node_lost"}))
TRAINERS_RESTART = Policy(required=frozenset({"restart trainer"}), forbidden=frozenset({"restart engine", "node_lost"}))
SPARE_INFERS = Policy(required=frozenset({"node_lost", "spare"}), forbidden=frozenset({"restart trainer"}))
SPARE_TRAINS = Policy(required=frozenset({"node_lost", "spare"}), forbidden=frozenset({"restart engine"}))
DROPPED = Policy(required=frozenset({"replica dropped"}), forbidden=frozenset({"restart trainer"}))
UNNOTICED = Policy(
    forbidden=frozenset({"restart trainer", "restart engine", "node_lost", "replica lost"}), is_noticed=False
)
QUEUED_AGAIN = Policy(attempts=2)
STOPS_AND_RESUMES = Policy(attempts=2, required=frozenset({"stopping"}))
UNRECORDED = Policy(outcome="no last event", is_noticed=False)
"""It fails, and has nowhere to record that."""

CANCELLED = Policy(outcome="cancelled")

ENGINE, TRAINER, RANK_0 = "inference-0", "trainer-0001", "trainer-0000"
SPARE = ("layout.spares=1",)
LONG = ("trainer.steps=25",)
"""Long enough for SLURM to find out by itself."""

LONGER = ("trainer.steps=12",)
"""Longer than a lease: the run does not wait for an agent whose engine still serves."""

SMALL_DISK = ("preflight.min_disk_gb=0.01",)
TWO_ENGINES = ("layout.nodes=4", "layout.inference_nodes=2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One fault."""

    name: str
    action: str
    """What is done; see :mod:`launcher.testing.chaos.actions`."""

    policy: Policy
    target: str = RANK_0
    """The worker that the fault is aimed at, or whose node it is."""

    argument: str = ""
    """Of a signal: where its targets are from the worker, see :mod:`launcher.testing.chaos.processes`; else a
    variant of the action."""

    shape: tuple[str, ...] = ()
    """Overrides of the run."""

    moments: tuple[Moment, ...] = THREE


def _signals(what: str, target: str, argument: str, policy: Policy, shape: tuple[str, ...] = ()) -> tuple[Case, ...]:
    """SIGKILL and SIGSTOP of the same target."""
    return tuple(
        Case(name=f"{action} {what}", action=action, policy=policy, target=target, argument=argument, shape=shape)
        for action in ("kill", "stop")
    )


CASES = (
    *_signals("engine server", ENGINE, "self", ENGINE_RESTARTS),
    *_signals("engine core", ENGINE, "EngineCore", ENGINE_RESTARTS),
    *_signals("inference agent", ENGINE, "agent", SPARE_INFERS, (*SPARE, *LONGER)),
    *_signals("trainer rank", TRAINER, "self", TRAINERS_RESTART),
    *_signals("trainer rank 0", RANK_0, "self", TRAINERS_RESTART),
    *_signals("trainer agent", TRAINER, "agent", SPARE_TRAINS, SPARE),
    *_signals("agent of node 0", RANK_0, "agent", QUEUED_AGAIN),
    Case(name="kill inference node, spare", action="crash", target=ENGINE, policy=SPARE_INFERS, shape=SPARE),
    Case(name="kill inference node, no spare", action="crash", target=ENGINE, policy=DROPPED, shape=TWO_ENGINES),
    Case(name="kill trainer node, spare", action="crash", target=TRAINER, policy=SPARE_TRAINS, shape=SPARE),
    Case(name="kill trainer node, no spare", action="crash", target=TRAINER, policy=QUEUED_AGAIN),
    Case(name="kill node 0", action="crash", target=RANK_0, policy=QUEUED_AGAIN),
    Case(name="scontrol down, trainer node", action="down", target=TRAINER, policy=SPARE_TRAINS, shape=SPARE),
    Case(name="scontrol down, node 0", action="down", target=RANK_0, policy=QUEUED_AGAIN),
    Case(name="kill slurmd, trainer node", action="kill_slurmd", target=TRAINER, policy=UNNOTICED, shape=LONG),
    Case(name="kill slurmd, node 0", action="kill_slurmd", target=RANK_0, policy=UNNOTICED, shape=LONG),
    Case(name="cut inference node, heals", action="cut", argument="heal", target=ENGINE, policy=UNNOTICED),
    Case(name="cut inference node", action="cut", target=ENGINE, policy=SPARE_INFERS, shape=SPARE),
    Case(name="cut trainer node, heals", action="cut", argument="heal", target=TRAINER, policy=UNNOTICED),
    Case(name="cut trainer node", action="cut", target=TRAINER, policy=SPARE_TRAINS, shape=SPARE),
    Case(name="disk full, freed", action="fill", argument="free", policy=Policy(is_noticed=False), shape=SMALL_DISK),
    Case(name="disk full", action="fill", policy=UNRECORDED, shape=SMALL_DISK),
    Case(name="USR2", action="usr2", policy=STOPS_AND_RESUMES),
    Case(name="USR2 twice", action="usr2", argument="twice", policy=STOPS_AND_RESUMES),
    Case(name="USR2 in a checkpoint", action="usr2", policy=STOPS_AND_RESUMES, moments=(Moment.CHECKPOINT,)),
    Case(name="scontrol requeue", action="requeue", policy=STOPS_AND_RESUMES),
    Case(name="preemption", action="preempt", policy=STOPS_AND_RESUMES),
    Case(name="scancel", action="scancel", policy=CANCELLED),
)

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

    needs: frozenset[str] = frozenset()
    """Events that must come, as :func:`launcher.testing.chaos.judge.word` names them."""

    spares: frozenset[str] = frozenset()
    """Events that must not come."""

    is_noticed: bool = True
    """Whether the run must say something within :data:`launcher.testing.chaos.judge.HANG_S`."""


ENGINE_RESTARTS = Policy(needs=frozenset({"restart engine"}), spares=frozenset({"restart trainer", "node_lost"}))
TRAINERS_RESTART = Policy(needs=frozenset({"restart trainer"}), spares=frozenset({"restart engine", "node_lost"}))
SPARE_INFERS = Policy(needs=frozenset({"node_lost", "spare"}), spares=frozenset({"restart trainer"}))
SPARE_TRAINS = Policy(needs=frozenset({"node_lost", "spare"}), spares=frozenset({"restart engine"}))
DROPPED = Policy(needs=frozenset({"replica dropped"}), spares=frozenset({"restart trainer"}))
UNNOTICED = Policy(
    spares=frozenset({"restart trainer", "restart engine", "node_lost", "replica lost"}), is_noticed=False
)
QUEUED_AGAIN = Policy(attempts=2)
STOPS_AND_RESUMES = Policy(attempts=2, needs=frozenset({"stopping"}))
UNSAID = Policy(outcome="no last word", is_noticed=False)
"""It fails, and has nowhere to say so."""

CANCELLED = Policy(outcome="cancelled")

ENGINE, TRAINER, RANK_0 = "inference-0", "trainer-0001", "trainer-0000"
SPARE = ("layout.spares=1",)
LONG = ("trainer.steps=25",)
"""Long enough for SLURM to find out by itself."""

LONGER = ("trainer.steps=12",)
"""Longer than a lease: nobody waits for an agent whose engine serves on."""

SMALL_DISK = ("preflight.min_disk_gb=0.01",)
TWO_ENGINES = ("layout.nodes=4", "layout.inference_nodes=2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One fault."""

    name: str
    act: str
    """What is done; see :mod:`launcher.testing.chaos.actions`."""

    policy: Policy
    target: str = RANK_0
    """The worker that the fault is aimed at, or whose node it is."""

    argument: str = ""
    """Of a signal: where its targets are from the worker, see :mod:`launcher.testing.chaos.inject`; else how it goes
    on."""

    shape: tuple[str, ...] = ()
    """Overrides of the run."""

    moments: tuple[Moment, ...] = THREE


def _signals(what: str, target: str, argument: str, policy: Policy, shape: tuple[str, ...] = ()) -> tuple[Case, ...]:
    """SIGKILL and SIGSTOP of the same target."""
    return tuple(
        Case(name=f"{act} {what}", act=act, policy=policy, target=target, argument=argument, shape=shape)
        for act in ("kill", "stop")
    )


CASES = (
    *_signals("engine server", ENGINE, "self", ENGINE_RESTARTS),
    *_signals("engine core", ENGINE, "EngineCore", ENGINE_RESTARTS),
    *_signals("inference agent", ENGINE, "agent", SPARE_INFERS, (*SPARE, *LONGER)),
    *_signals("trainer rank", TRAINER, "self", TRAINERS_RESTART),
    *_signals("trainer rank 0", RANK_0, "self", TRAINERS_RESTART),
    *_signals("trainer agent", TRAINER, "agent", SPARE_TRAINS, SPARE),
    *_signals("agent of node 0", RANK_0, "agent", QUEUED_AGAIN),
    Case(name="kill inference node, spare", act="crash", target=ENGINE, policy=SPARE_INFERS, shape=SPARE),
    Case(name="kill inference node, no spare", act="crash", target=ENGINE, policy=DROPPED, shape=TWO_ENGINES),
    Case(name="kill trainer node, spare", act="crash", target=TRAINER, policy=SPARE_TRAINS, shape=SPARE),
    Case(name="kill trainer node, no spare", act="crash", target=TRAINER, policy=QUEUED_AGAIN),
    Case(name="kill node 0", act="crash", target=RANK_0, policy=QUEUED_AGAIN),
    Case(name="scontrol down, trainer node", act="down", target=TRAINER, policy=SPARE_TRAINS, shape=SPARE),
    Case(name="scontrol down, node 0", act="down", target=RANK_0, policy=QUEUED_AGAIN),
    Case(name="kill slurmd, trainer node", act="kill_slurmd", target=TRAINER, policy=UNNOTICED, shape=LONG),
    Case(name="kill slurmd, node 0", act="kill_slurmd", target=RANK_0, policy=UNNOTICED, shape=LONG),
    Case(name="cut inference node, heals", act="cut", argument="heal", target=ENGINE, policy=UNNOTICED),
    Case(name="cut inference node", act="cut", target=ENGINE, policy=SPARE_INFERS, shape=SPARE),
    Case(name="cut trainer node, heals", act="cut", argument="heal", target=TRAINER, policy=UNNOTICED),
    Case(name="cut trainer node", act="cut", target=TRAINER, policy=SPARE_TRAINS, shape=SPARE),
    Case(name="disk full, freed", act="fill", argument="free", policy=Policy(is_noticed=False), shape=SMALL_DISK),
    Case(name="disk full", act="fill", policy=UNSAID, shape=SMALL_DISK),
    Case(name="USR2", act="usr2", policy=STOPS_AND_RESUMES),
    Case(name="USR2 twice", act="usr2", argument="twice", policy=STOPS_AND_RESUMES),
    Case(name="USR2 in a checkpoint", act="usr2", policy=STOPS_AND_RESUMES, moments=(Moment.CHECKPOINT,)),
    Case(name="scontrol requeue", act="requeue", policy=STOPS_AND_RESUMES),
    Case(name="preemption", act="preempt", policy=STOPS_AND_RESUMES),
    Case(name="scancel", act="scancel", policy=CANCELLED),
)

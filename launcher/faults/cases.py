"""What is done to a run, at which moments, and what must follow by the policy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Moment(StrEnum):
    """When the fault strikes."""

    START = "start-up"
    """The target has just been started."""

    STEP = "mid-step"
    PUBLISH = "mid-publish"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One fault."""

    name: str
    process: str
    """Name of the worker that the target is found from; empty for a fault of the whole job."""

    relation: str
    """Where the target is from there; see :mod:`launcher.faults.inject`."""

    signal: str
    outcomes: frozenset[str]
    """How the run may end."""

    restart: str | None = None
    """What must have been restarted: ``engine`` or ``trainer``."""


COMPLETES, FAILS, CANCELLED = frozenset({"completed"}), frozenset({"failed"}), frozenset({"cancelled"})
ENGINE, TRAINER, RANK_0 = "inference-0", "trainer-0001", "trainer-0000"


def _overcome(name: str, process: str, relation: str, signal: str, restart: str) -> Case:
    """A fault that the run gets over by starting something again."""
    return Case(name=name, process=process, relation=relation, signal=signal, outcomes=COMPLETES, restart=restart)


CASES = (
    _overcome("kill engine server", ENGINE, "self", "KILL", "engine"),
    _overcome("stop engine server", ENGINE, "self", "STOP", "engine"),
    _overcome("kill engine core", ENGINE, "EngineCore", "KILL", "engine"),
    _overcome("stop engine core", ENGINE, "EngineCore", "STOP", "engine"),
    _overcome("kill trainer rank", TRAINER, "self", "KILL", "trainer"),
    _overcome("stop trainer rank", TRAINER, "self", "STOP", "trainer"),
    _overcome("kill trainer rank 0", RANK_0, "self", "KILL", "trainer"),
    # One replica, and no spare node: without its node the run cannot go on.
    Case(name="kill inference agent", process=ENGINE, relation="agent", signal="KILL", outcomes=FAILS),
    Case(name="kill inference node", process=ENGINE, relation="node", signal="KILL", outcomes=FAILS),
    Case(name="kill agent of node 0", process=RANK_0, relation="agent", signal="KILL", outcomes=FAILS),
    Case(name="cancel", process="", relation="job", signal="TERM", outcomes=CANCELLED),
)

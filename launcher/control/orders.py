"""What one node is to run, as node 0 tells it: agents report and obey, they decide nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerOrder:
    """The trainer ranks of a node."""

    start: int
    """Which start of them this is, from 0. Ranks of an earlier one are to be ended."""

    runs: bool
    """Whether they may be started now; ranks that run already go on."""

    store: str | None = None
    """``host:port`` of their rendezvous."""

    urls: tuple[str, ...] = ()
    """The engines' URLs at this moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOrder:
    """A node's part of a replica."""

    start: int
    """Which start of it this is, from 0. Processes of an earlier one are to be ended."""

    runs: bool
    """Whether it may be started now; processes that run already go on."""

    url: str | None = None
    """Where it listens; None while it has not said so."""

    master: str | None = None
    """Where the parts of a replica over several nodes meet; None while its head has not said so."""

    awaits_weights: bool = False
    """Its own weights are out of date: it may answer nothing before the trainer has sent new ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """Everything that one node is to run."""

    revision: int = -1
    place: int | None = None
    """The node of the layout that it is; None while it is a spare."""

    is_fenced: bool = False
    """It counts as lost: it ends all that it runs, at once."""

    stopping: int = 0
    """A :class:`~launcher.control.stopping.StopStage`."""

    trainers: TrainerOrder | None = None
    replicas: Mapping[int, ReplicaOrder] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Orders:
        """The orders of their JSON form."""
        trainers = data["trainers"]
        return cls(
            revision=int(data["revision"]),
            place=data["place"],
            is_fenced=bool(data["is_fenced"]),
            stopping=int(data["stopping"]),
            trainers=None if trainers is None else TrainerOrder(**{**trainers, "urls": tuple(trainers["urls"])}),
            replicas={int(index): ReplicaOrder(**order) for index, order in data["replicas"].items()},
        )

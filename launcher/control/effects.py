"""What a transition leads to outside of the state; the server carries it out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from launcher.control.preflight_report import PreflightReport
from launcher.events.schema import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEvent:
    """The event goes to the run's log; the server sets its time."""

    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyNodes:
    """The assignments of these nodes have changed: their heartbeats are answered now."""

    node_ranks: frozenset[int]


class Notify(Enum):
    """Which waiting requests are answered now."""

    ALL_NODES = "heartbeats of all nodes: the phase has changed"
    VALUES = "requests for values: one was published"
    POOL = "requests for the pool: it has changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardSignal:
    """The signal policy of node 0 is to decide what follows this signal."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparePreflightReports:
    """No further report is awaited. The comparison's :class:`PreflightResult` is applied as an event of its own."""

    reports: tuple[PreflightReport, ...]


Effect = LogEvent | Notify | NotifyNodes | ForwardSignal | ComparePreflightReports
Effects = Iterator[Effect]
"""A transition is a generator: it changes the state between its effects, so its caller always exhausts it."""


def no_effects() -> Effects:
    """Of a transition that changes the state alone."""
    return iter(())

"""Adds events to the log of the run that this process belongs to, through the control service."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from launcher.common.env import LAUNCHER_CONTROL
from launcher.control.client import ControlClient
from launcher.control.protocol import EventRequest
from launcher.events.schema import Event, PhaseChanged
from launcher.events.serialize import make_event


def emit(event: Event | str, **fields: Any) -> None:
    """Adds an event to the run's log; does nothing outside of a run.

    Your own trainer reports its steps with ``emit("step", step=3, steps=100, reward=0.5, my_figure=1.0)``.

    Args:
        event: the event, or the name of a kind.
        fields: of the kind that is named; others are kept. Values must be JSON.

    The control service sets the time, so that all events share one clock.

    Raises:
        ControlError: the control service is gone, which means that the run is ending.
    """
    if not os.environ.get(LAUNCHER_CONTROL):
        return
    event = make_event(event, fields) if isinstance(event, str) else event
    _client().call(EventRequest.of(event))


@contextmanager
def phase(name: str, who: str) -> Iterator[None]:
    """Emits the begin and the end of a start-up phase; after an exception it stays open."""
    emit(PhaseChanged(phase=name, who=who, state="begin"))
    yield
    emit(PhaseChanged(phase=name, who=who, state="end"))


@functools.cache
def _client() -> ControlClient:
    return ControlClient.from_environment()

"""Phases of the start-up that only the bridge knows: waiting for engines, making groups, the first version."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from launcher.control import emit as events
from launcher.events.schema import PhaseChanged

WHO = "trainer-0000"
"""Rank 0 speaks for all trainer ranks, so that events do not grow with the world."""


def phase(name: str, *, when: bool) -> AbstractContextManager[None]:
    """Marks a phase, if ``when`` holds."""
    return events.phase(name, WHO) if when else nullcontext()


def first_sync(state: Literal["begin", "end"], *, when: bool) -> None:
    """The first version begins to be sent, or is served everywhere (``state`` is ``begin`` or ``end``)."""
    if when:
        events.emit(PhaseChanged(phase="first sync", who=WHO, state=state))

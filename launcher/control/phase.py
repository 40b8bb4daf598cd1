"""Phases of an attempt."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """Phases of an attempt. They only ever move forward."""

    STARTING = "starting"
    """Not every node has reported yet."""

    CHECKING = "checking"
    """Every node has reported; each looks at itself and at its peers before anything is started (preflight)."""

    RUNNING = "running"
    DRAINING = "draining"
    """The trainer is done; engines finish their requests and exit."""

    FINISHED = "finished"
    """Everything ended as it should."""

    FAILED = "failed"
    """Something failed; every agent ends what it started."""

    STOPPED = "stopped"
    """It was asked to stop after a checkpoint, and has ended what it ran; a later attempt goes on."""

    CANCELLED = "cancelled"
    """Somebody asked for the end."""


ENDED = frozenset({Phase.FINISHED, Phase.FAILED, Phase.STOPPED, Phase.CANCELLED})

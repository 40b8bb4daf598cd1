"""The run's event log: one JSON object a line, written by node 0, fed by every process of the run."""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.control.client import ADDRESS_VARIABLE, ControlClient

LAST_BYTES = 4096
"""More than the last event of an attempt needs."""


class EventLog:
    """Appends events to a file, one whole line at a time. Thread-safe; has one writer in a run.

    Args:
        path: made if it is missing; a last line that its writer could not finish is ended first.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        written = path.read_bytes() if path.exists() else b""
        self._file = path.open("a", encoding="utf-8")
        if written and not written.endswith(b"\n"):
            self._file.write("\n")

    def append(self, event: dict[str, Any]) -> None:
        """Writes one event; it is in the file when this returns."""
        with self._lock:
            self._file.write(json.dumps(event, separators=(",", ":"), default=float) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def has_finished(path: Path) -> bool:
    """Whether an event log ends with the end of its attempt."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LAST_BYTES))
            lines = file.read().splitlines()
        return bool(lines) and json.loads(lines[-1]).get("event") == "finished"
    except (OSError, ValueError):
        return False


def emit(event: str, **fields: Any) -> None:
    """Adds an event to the log of the run that this process belongs to; does nothing outside a run.

    Values must be JSON. The time is the control service's, so that all events share one clock.

    Raises:
        ControlError: the control service is gone, which means that the run is ending.
    """
    if os.environ.get(ADDRESS_VARIABLE):
        _client().call("event", event=event, fields=fields)


@contextmanager
def phase(name: str, who: str) -> Iterator[None]:
    """Marks a start-up phase's begin and end; an exception leaves it open, which is what happened."""
    emit("phase", phase=name, who=who, state="begin")
    yield
    emit("phase", phase=name, who=who, state="end")


@functools.cache
def _client() -> ControlClient:
    return ControlClient.from_environment()

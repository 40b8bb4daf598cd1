"""The run's event log: one JSON object a line, written by node 0, fed by every process of the run."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.control.client import ADDRESS_VARIABLE, ControlClient

logger = logging.getLogger(__name__)

RETRY_S = 1.0
CLOSE_TIMEOUT_S = 5.0

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
        self._file = path.open("ab", buffering=0)
        self._is_torn = bool(written) and not written.endswith(b"\n")

    def append(self, event: dict[str, Any]) -> None:
        """Writes one event; it is in the file when this returns.

        Raises:
            OSError: it could not be written, or only in part, which the next event makes good for.
        """
        line = json.dumps(event, separators=(",", ":"), default=float) + "\n"
        with self._lock:
            written = 0
            data = (b"\n" if self._is_torn else b"") + line.encode()
            while written < len(data):
                written += os.write(self._file.fileno(), data[written:])
                self._is_torn = written < len(data)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class EventWriter:
    """Writes an event log from a thread, so that a filesystem that hangs or is full holds up nobody.

    What cannot be written is tried again until it can be; the order stays.

    Args:
        log: nobody else's; closed together with this.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def append(self, event: dict[str, Any]) -> None:
        """Takes one event, and returns at once."""
        self._queue.put(event)

    def close(self) -> None:
        """Waits a while for what is still to be written; on a disk that stays full it is lost."""
        self._stop.set()
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)
        with contextlib.suppress(OSError):
            self._log.close()

    def _run(self) -> None:
        while (event := self._queue.get()) is not None:
            while not self._write(event) and not self._stop.wait(RETRY_S):
                pass

    def _write(self, event: dict[str, Any]) -> bool:
        try:
            self._log.append(event)
        except OSError as error:
            logger.warning("an event cannot be written: %s", error)
            return False
        return True


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

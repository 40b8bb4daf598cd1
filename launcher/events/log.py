"""Writes the event log of an attempt: one JSON object a line. Node 0's agent is the only writer."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from pathlib import Path

from launcher.common.delivery import DeliveryThread
from launcher.common.jsonio import tail
from launcher.events.schema import Event
from launcher.events.serialize import event_to_dict

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

    def append(self, event: Event) -> None:
        """Writes one event; it is in the file when this returns.

        Raises:
            OSError: it could not be written, or only in part; the next call completes the file.
        """
        line = json.dumps(event_to_dict(event), separators=(",", ":")) + "\n"
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
    """Writes an event log from a thread, so that a filesystem that hangs or is full blocks no caller.

    An event that cannot be written is tried again until it can be; the order stays.

    Args:
        log: not shared; closed together with this.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._thread = DeliveryThread(self._write, name="events", retry_s=RETRY_S)

    def append(self, event: Event) -> None:
        """Queues one event, and returns at once."""
        self._thread.put(event)

    def close(self) -> None:
        """Waits at most 5 s until all events are written; on a disk that stays full the rest is lost."""
        self._thread.close(CLOSE_TIMEOUT_S)
        with contextlib.suppress(OSError):
            self._log.close()

    def _write(self, event: Event) -> bool:
        try:
            self._log.append(event)
        except OSError as error:
            logger.warning("an event cannot be written: %s", error)
            return False
        return True


def has_finished(path: Path) -> bool:
    """Whether an event log ends with the end of its attempt."""
    try:
        lines = tail(path, LAST_BYTES).splitlines()
        return bool(lines) and json.loads(lines[-1]).get("event") == "finished"
    except (OSError, ValueError):
        return False

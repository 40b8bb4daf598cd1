"""Reads a run's event log as it grows."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"

logger = logging.getLogger(__name__)


class EventReader:
    """Yields each event of a run once, in order, whenever it is asked for what is new.

    With ``attempt=None`` it starts at the newest attempt, if that is later than ``after``, and goes on with the next
    one when that has begun to write.
    """

    def __init__(self, run_dir: Path, attempt: int | None = None, *, after: int = 0) -> None:
        self._after = after
        self._run_dir = run_dir
        self._is_pinned = attempt is not None
        self._attempt = attempt
        self._offset = 0
        self._partial = b""

    @property
    def attempt(self) -> int | None:
        """The attempt that is read; None until there is one."""
        return self._attempt

    def read(self) -> Iterator[dict[str, Any]]:
        """Yields the complete lines written since the last call; nothing when the log is not there yet. Never waits."""
        # What is newest is looked up before reading: an attempt's log is final once the next one exists.
        newest = None if self._is_pinned else max((n for n in attempts(self._run_dir) if n > self._after), default=None)
        if self._attempt is None:
            self._attempt = newest
        if self._attempt is None:
            return
        yield from self._read_lines()
        if newest is not None and newest > self._attempt:
            self._attempt = min(n for n in attempts(self._run_dir) if n > self._attempt)
            self._offset, self._partial = 0, b""

    def _read_lines(self) -> Iterator[dict[str, Any]]:
        path = events_path(self._run_dir, self._attempt or 0)
        try:
            # Opened anew each time: a network filesystem shows another host's writes only after an open.
            with path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        self._offset += len(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            event = _parse(line, path)
            if event is not None:
                yield event


def events_path(run_dir: Path, attempt: int) -> Path:
    """Where an attempt's event log lies."""
    return run_dir / "attempts" / str(attempt) / EVENTS


def attempts(run_dir: Path) -> list[int]:
    """The attempts that have an event log, in order."""
    folder = run_dir / "attempts"
    return sorted(int(path.parent.name) for path in folder.glob(f"*/{EVENTS}") if path.parent.name.isdecimal())


def _parse(line: bytes, path: Path) -> dict[str, Any] | None:
    if not line.strip():
        return None
    try:
        event = json.loads(line)
    except ValueError:  # also a UnicodeDecodeError
        event = None
    if not isinstance(event, dict):
        # A node that dies while writing leaves such a line; what comes after it still counts.
        logger.warning("%s: a line is not an event and was left out: %.80r", path, line)
        return None
    return event

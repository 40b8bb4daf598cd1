"""What a run under test does: the events of all its attempts, as they come."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

LOOK_S = 0.01
"""A publication takes a tenth of a second, so the log is looked at more often than that."""

Event = dict[str, Any]


class ObservedRun:
    """The event logs of a run; each event is given the number of its ``attempt_number``."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.events: list[Event] = []
        self._offsets: dict[int, int] = {}

    def read(self) -> list[Event]:
        """What is new."""
        new: list[Event] = []
        for number in count(1):
            path = self.run_dir / "attempts" / str(number) / "events.jsonl"
            if not path.exists():
                break
            with path.open("rb") as file:
                file.seek(self._offsets.get(number, 0))
                *lines, rest = file.read().split(b"\n")
                self._offsets[number] = file.tell() - len(rest)
            new += [{**json.loads(line), "attempt_number": number} for line in lines if _is_whole(line)]
        self.events += new
        return new

    def wait(self, wanted: Callable[[Event], bool], is_over: Callable[[], bool], timeout_s: float) -> Event | None:
        """The first event that is wanted, of those read before too; None if the run is over, or it does not come."""
        deadline = time.monotonic() + timeout_s
        seen = 0
        while True:
            over = is_over() or time.monotonic() > deadline
            self.read()
            for event in self.events[seen:]:
                if wanted(event):
                    return event
            seen = len(self.events)
            if over:
                return None
            time.sleep(LOOK_S)

    def first(self, event: str, **fields: Any) -> Event | None:
        """The first event of this name with these fields; None if there is none so far."""
        wanted = {"event": event, **fields}.items()
        return next((found for found in self.events if wanted <= found.items()), None)

    def started(self, process: str) -> Event | None:
        """The newest start of a worker."""
        starts = [e for e in self.events if e["event"] == "process" and e.get("name") == process and "pid" in e]
        started = [event for event in starts if event.get("state") == "started"]
        return started[-1] if started else None

    def hostname(self, node_rank: int, attempt: int = 1) -> str:
        """Name of a node of an attempt that has begun.

        Raises:
            LookupError: it has not reported.
        """
        up = self.first("node_up", node_rank=node_rank, attempt_number=attempt)
        if up is None:
            raise LookupError(f"node {node_rank} has not reported")
        return str(up["hostname"])


def _is_whole(line: bytes) -> bool:
    """A line that its writer could not finish, because it was killed or the disk was full, says nothing."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False

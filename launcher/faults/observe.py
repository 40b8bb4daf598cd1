"""What a run under test does: its events as they come, and the processes that belong to it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOOK_S = 0.01
"""A publication takes a tenth of a second, so the log is looked at more often than that."""

Event = dict[str, Any]


class Observed:
    """The event log of a run's first attempt."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "attempts" / "1" / "events.jsonl"
        self.events: list[Event] = []
        self._offset = 0

    def read(self) -> list[Event]:
        """What is new."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            *lines, rest = file.read().split(b"\n")
            self._offset = file.tell() - len(rest)
        new = [json.loads(line) for line in lines if line]
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

    def pid_of(self, process: str) -> tuple[int, int] | None:
        """Process id and node of the newest start of a worker."""
        starts = [e for e in self.events if e.get("event") == "process" and e.get("name") == process and "pid" in e]
        started = [event for event in starts if event.get("state") == "started"]
        return (int(started[-1]["pid"]), int(started[-1]["node_rank"])) if started else None


def processes_of(run_dir: Path) -> list[int]:
    """Processes of this machine that belong to a run, however they detached themselves."""
    needle = str(run_dir).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if needle in (entry / "environ").read_bytes() or needle in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found

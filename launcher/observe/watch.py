"""Watches one run from outside until it is over; its cluster is asked rarely, its files often."""

from __future__ import annotations

import time
from pathlib import Path

from launcher.observe.run_status import RunStatus, statuses
from launcher.observe.run_summary import summarize

SHORTEST_S = 1.0
LONGEST_S = 15.0
GROWTH = 1.5


class RunWatch:
    """The state of one run, asked for as often as one likes.

    The interval between two looks grows while nothing changes; the first look happens at once.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._interval_s = SHORTEST_S
        self.problem: str | None = None
        """Why the state is only the last known one; None if it is not."""

        self._status = self._look()
        self._next = time.monotonic() + self._interval_s

    @property
    def status(self) -> RunStatus:
        """The state, at most some seconds old."""
        if not self._status.is_over and time.monotonic() >= self._next:
            before = self._status
            self._status = self._look()
            is_news = (before.word, before.job) != (self._status.word, self._status.job)
            self._interval_s = SHORTEST_S if is_news else min(self._interval_s * GROWTH, LONGEST_S)
            self._next = time.monotonic() + self._interval_s
        return self._status

    def look_now(self) -> RunStatus:
        """Looks again with the next question, and often after that: something is about to change."""
        self._interval_s = SHORTEST_S
        self._next = 0.0
        return self.status

    def _look(self) -> RunStatus:
        (status,), self.problem = statuses([summarize(self._run)])
        return status

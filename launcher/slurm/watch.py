"""Watches one job's state without hammering the controller."""

from __future__ import annotations

import time
from collections.abc import Callable

from launcher.slurm.client import ControllerAway
from launcher.slurm.query import job_state
from launcher.slurm.states import JobState

LONGEST_INTERVAL_S = 30.0
LONGEST_SILENCE_S = 60.0
"""Longest interval while the controller does not answer."""

GROWTH = 1.5


class StateWatch:
    """Asks for one job's state, but not more often than its interval, however often it is asked itself.

    The interval grows while nothing changes, and faster while the controller is away; a change makes it short again.

    Args:
        interval_s: the shortest interval.
        clock: seconds that never go back.
    """

    def __init__(self, job_id: str, interval_s: float = 2.0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._job_id = job_id
        self._shortest_s = interval_s
        self._interval_s = interval_s
        self._clock = clock
        self._ask_at = float("-inf")
        self._state: JobState | None = JobState(name="PENDING")
        self.problem: str | None = None
        """Why the last question had no answer; None if it had one."""

    @property
    def state(self) -> JobState | None:
        """The last known state, None if SLURM has forgotten the job; unchanged while the controller is away."""
        if self.is_open and self._clock() >= self._ask_at:
            self._ask()
        return self._state

    @property
    def is_open(self) -> bool:
        """True while the last known state may change."""
        return self._state is not None and not self._state.is_final

    def expect_change(self) -> None:
        """Asks often again: the end, say, is due."""
        self._interval_s = self._shortest_s
        self._ask_at = min(self._ask_at, self._clock() + self._interval_s)

    def _ask(self) -> None:
        try:
            state = job_state(self._job_id)
        except ControllerAway as error:
            self.problem = str(error)
            self._interval_s = min(self._interval_s * 2, LONGEST_SILENCE_S)
        else:
            self.problem = None
            is_news = self._state is None or state is None or state.name != self._state.name
            self._interval_s = self._shortest_s if is_news else min(self._interval_s * GROWTH, LONGEST_INTERVAL_S)
            self._state = state
        self._ask_at = self._clock() + self._interval_s

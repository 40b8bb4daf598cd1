"""Whether something that failed is started again: how often, after which pause, and which failures never are."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field

FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
"""Signals that somebody else sends; the others are how a program's own error ends it."""

REFUSED = 2
"""Exit code of a program that refuses how it was started; it would refuse again."""


@dataclass(slots=True, kw_only=True)
class Restarts:
    """The restarts of one thing. Pauses double with each that still counts."""

    window_s: float
    """Restarts longer ago do not count."""

    backoff_s: float = 0.0
    longest_s: float = 0.0
    times: list[float] = field(default_factory=list)

    def allow(self, now: float, limit: int) -> float | None:
        """Counts one more restart and returns the pause before it; None, and nothing is counted, at the limit."""
        self.times = [time for time in self.times if now - time < self.window_s]
        if len(self.times) >= limit:
            return None
        # The exponent is bounded because a limit may be large, and floats are not.
        pause = min(self.backoff_s * 2.0 ** min(len(self.times), 60), self.longest_s)
        self.times.append(now)
        return pause

    @property
    def count(self) -> int:
        """How many counted when :meth:`allow` was last asked."""
        return len(self.times)


def is_from_outside(exit_code: int | None) -> bool:
    """Whether a process was ended by somebody else: killed, or found hanging (None)."""
    if exit_code is None:
        return True
    # A shell reports a signal's end as 128 + n.
    return (-exit_code if exit_code < 0 else exit_code - 128) in FROM_OUTSIDE

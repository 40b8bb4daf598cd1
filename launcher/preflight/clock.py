"""This node's clock against node 0's, as Cristian's algorithm measures it: the quickest of a few round trips counts."""

from __future__ import annotations

import time
from collections.abc import Callable

from launcher.control.preflight_report import PeerReport

SAMPLES = 5


def clock_offset(ask: Callable[[], float]) -> tuple[float, float]:
    """This clock minus the other one, and the largest error of that, in seconds.

    Args:
        ask: the other clock, at the price of a round trip.
    """
    best = (0.0, float("inf"))
    for _ in range(SAMPLES):
        before = time.time()
        other = ask()
        after = time.time()
        half = max(0.0, after - before) / 2
        if half < best[1]:
            best = (before + half - other, half)
    return best


def skew_complaint(offset_s: float, error_s: float, limit_s: float) -> PeerReport | None:
    """What to say of a clock that is off; the measurement's error is in its favour."""
    if abs(offset_s) - error_s <= limit_s:
        return None
    way = "ahead of" if offset_s > 0 else "behind"
    text = f"clock {abs(offset_s):.1f} s {way} node 0's, `preflight.max_clock_skew_s` is {limit_s:g}"
    return PeerReport(name="clock", about=0, text=text)

"""Follows a run until its end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TextIO

from launcher.events.fold import apply_event
from launcher.events.reader import EventReader, new_state
from launcher.events.run_state import RunState


class Display(Protocol):
    """Shows a run while it goes on."""

    def update(self, state: RunState) -> None:
        """Shows the state as it is now; called about four times a second, also when nothing has happened."""

    def close(self) -> None:
        """Leaves the last picture standing and gives the terminal back."""


def display_for(stream: TextIO) -> Display:
    """The live display when ``stream`` is a terminal that can move its cursor, plain lines otherwise."""
    if stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown"):
        from launcher.observe.terminal.live import LiveDisplay

        return LiveDisplay(stream)
    from launcher.observe.terminal.plain import PlainDisplay

    return PlainDisplay(stream)


REQUEUED = "requeued"
"""Outcome of an attempt after which the job is queued again."""

SHORTEST_INTERVAL_S = 0.2
"""No shorter interval: the log may lie on a filesystem that the whole site shares."""


def follow(
    run_dir: Path,
    attempt: int | None,
    stream: TextIO,
    is_alive: Callable[[], bool],
    *,
    interval_s: float = 0.25,
    alive_interval_s: float = 1.0,
    after: int = 0,
    settle_s: float = 1.0,
    display: Display | None = None,
) -> RunState:
    """Shows the run on ``stream`` until it has finished, or until what runs it is gone.

    Args:
        attempt: The attempt to follow; None for the newest one and those after it.
        is_alive: Whether the run's processes, or its job, still exist; called every ``alive_interval_s``.
        after: With ``attempt=None``: only attempts later than this one.
        settle_s: Once they do not: how long the log may stay silent before it is taken as complete. A shared
            filesystem shows another node's last lines late.
        display: Shown on this instead of the one that fits ``stream``.

    An attempt that ends by queueing the job again is followed by the next one.

    Returns:
        The last state; ``outcome`` is None when the run ended without saying so.
    """
    interval_s = max(interval_s, SHORTEST_INTERVAL_S)
    reader = EventReader(run_dir, attempt, after=after)
    state = new_state(run_dir)
    display = display_for(stream) if display is None else display
    ask_at, silent_since, is_gone = 0.0, 0.0, False
    try:
        while True:
            is_news = False
            for event in reader.read():
                is_news = True
                apply_event(state, event)
            display.update(state)
            now = time.monotonic()
            if is_news:
                silent_since = now
            if state.outcome not in (None, REQUEUED) or (is_gone and now >= silent_since + settle_s):
                return state
            if not is_gone and now >= ask_at:
                is_gone, ask_at = not is_alive(), now + alive_interval_s
                silent_since = now if is_gone else silent_since
            # A file on a network filesystem notifies nobody, so this is a poll.
            time.sleep(interval_s)
    finally:
        display.close()

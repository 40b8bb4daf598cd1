"""What a follower draws on: a live picture on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
from typing import Protocol, TextIO

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

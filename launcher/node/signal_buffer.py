"""Signals that come before there is an agent to pass them on to. Imports nothing heavy: it has to be there first."""

from __future__ import annotations

import signal
from types import FrameType

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class EarlySignals:
    """Keeps signals from its making on. Main thread only.

    Blocking them would not do: a thread of a library, started before, would take them, and Python would run the handler
    that was there, which is submitit's.
    """

    def __init__(self) -> None:
        self.heard: list[int] = []
        for signum in PASSED_ON:
            signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        self.heard.append(signum)

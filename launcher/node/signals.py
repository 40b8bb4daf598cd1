"""Signals to a node: kept until there is an agent to forward them to, and collected by the agent.

Imports nothing heavy: it has to be there first.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from signal import Signals
from types import FrameType

FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class SignalBuffer:
    """Keeps signals from its making on. Main thread only.

    Blocking them would not do: a thread of a library, started before, would take them, and Python would run the handler
    that was there, which is submitit's.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        for signum in FORWARDED_SIGNALS:
            signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        self.received.append(signum)


class StopRequest:
    """The signals by which this process was requested to end; one that comes again changes nothing."""

    def __init__(self) -> None:
        self.signals: tuple[Signals, ...] = ()
        """Each once, in the order in which they came."""

        self._previous: dict[Signals, Callable[[int, FrameType | None], object] | int | None] = {}

    @property
    def signal(self) -> Signals | None:
        """The first one."""
        return self.signals[0] if self.signals else None

    def listen(self, signals: Iterable[Signals]) -> None:
        """Handles these signals from now on, those included that were blocked until now. Main thread only."""
        for signum in signals:
            self._previous[signum] = signal.signal(signum, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._previous)

    def restore(self) -> None:
        """Restores the handlers of before."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        if signum not in self.signals:
            self.signals = (*self.signals, Signals(signum))

"""The wish that a process ends in good order, as signals bring it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from types import FrameType


class StopRequest:
    """The first signal that asked this process to end; later ones change nothing, so repeating them is harmless."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}

    def listen(self, signals: Iterable[signal.Signals]) -> None:
        """Takes over the signals, those included that were blocked until now. Main thread only."""
        for signum in signals:
            self._previous[signum] = signal.signal(signum, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._previous)

    def restore(self) -> None:
        """Gives the signals back."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(signum)

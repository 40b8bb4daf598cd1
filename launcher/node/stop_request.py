"""The wish that a process ends in good order, as signals bring it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from signal import Signals
from types import FrameType


class StopRequest:
    """The signals that asked this process to end; one that comes again changes nothing, so repeating it is harmless."""

    def __init__(self) -> None:
        self.signals: tuple[Signals, ...] = ()
        """Each once, in the order in which they came."""

        self._previous: dict[Signals, Callable[[int, FrameType | None], object] | int | None] = {}

    @property
    def signal(self) -> Signals | None:
        """The first one."""
        return self.signals[0] if self.signals else None

    def listen(self, signals: Iterable[Signals]) -> None:
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
        if signum not in self.signals:
            self.signals = (*self.signals, Signals(signum))

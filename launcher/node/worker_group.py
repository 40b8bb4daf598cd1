"""Processes of one node that start together and end together: its trainer ranks, or its part of one replica."""

from __future__ import annotations

import time
from collections.abc import Sequence

from launcher.layout import Process, Role
from launcher.node.process import Worker


class Unit:
    """One such set of processes, and which start of it is running.

    Args:
        role: of all its processes.
        processes: what it consists of.
    """

    def __init__(self, role: Role, processes: Sequence[Process]) -> None:
        self.role = role
        self.processes = tuple(processes)
        self.start: int | None = None
        """Which start of it the workers belong to; None before the first."""

        self.workers: list[Worker] = []
        self.running: list[Worker] = []
        self.is_ready = False
        """Whether it has been told that its engine answers."""

        self._kill_at: float | None = None

    @property
    def is_stopping(self) -> bool:
        """Whether its end has been asked for, and is not complete."""
        return self._kill_at is not None

    @property
    def has_ended_well(self) -> bool:
        """Whether every process was started, and ended by itself with 0."""
        return (
            len(self.workers) == len(self.processes) and not self.running and all(w.poll() == 0 for w in self.workers)
        )

    def started(self, start: int, workers: Sequence[Worker]) -> None:
        """Its processes have been started once more."""
        self.start, self.is_ready = start, False
        self.workers, self.running = list(workers), list(workers)

    def stop(self, grace_s: float) -> None:
        """Asks its processes to end, and returns; :meth:`advance` sees to it that they do."""
        if self.running and not self.is_stopping:
            self._kill_at = time.monotonic() + grace_s
            for worker in self.running:
                worker.terminate()

    def advance(self) -> list[Worker]:
        """Processes that have ended since the last call; while stopping, kills what has not ended in time."""
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            for worker in self.running:
                worker.kill()
        ended = [worker for worker in self.running if worker.poll() is not None]
        self.running = [worker for worker in self.running if worker not in ended]
        if not self.running:
            self._kill_at = None
        return ended

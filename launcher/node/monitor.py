"""A look at everything below each worker, now and then: who is stopped, who uses shared memory, who is left over."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable

from launcher.common.procfs import Look, below, look_around
from launcher.node.process import Worker
from launcher.node.shared_memory import SharedMemory

INTERVAL_S = 1.0


class Watch:
    """Knows the processes of each worker, however they detached themselves, as of the last look."""

    def __init__(self) -> None:
        self._shared_memory = SharedMemory()
        self._known: dict[int, dict[int, Look]] = {}
        self._stopped_since: dict[tuple[int, int], float] = {}
        self._next = 0.0

    def look(self, workers: Iterable[Worker], stopped_s: float) -> list[Worker]:
        """Workers of which some process has been stopped for longer than ``stopped_s``; looks not too often."""
        now = time.monotonic()
        if now < self._next:
            return []
        self._next = now + INTERVAL_S
        around = look_around()
        since: dict[tuple[int, int], float] = {}
        late: list[Worker] = []
        for worker in workers:
            # What is no longer below it, because its parent has ended, is still its own.
            known = {pid: look for pid, look in self._known.get(worker.pid, {}).items() if _is_same(around, look)}
            if worker.pid in around:
                known[worker.pid] = around[worker.pid]
            known |= {process.pid: process for process in below(list(known), around)}
            self._known[worker.pid] = known
            stopped = [(pid, look.born) for pid, look in known.items() if around[pid].state == "T"]
            since |= {key: self._stopped_since.get(key, now) for key in stopped}
            if any(now - since[key] > stopped_s for key in stopped):
                late.append(worker)
        self._stopped_since = since
        self._shared_memory.attribute(dict(self._known))
        return late

    def ended(self, worker: Worker) -> None:
        """A worker has ended: what it left behind, processes and shared memory, ends with it."""
        known = self._known.pop(worker.pid, {})
        around = look_around()
        left = [pid for pid, look in known.items() if _is_same(around, look)]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + INTERVAL_S
        while left and time.monotonic() < deadline:
            around = look_around()
            left = [pid for pid in left if _is_same(around, known[pid])]
            time.sleep(0.01)
        self._shared_memory.remove(worker.pid)


def _is_same(around: dict[int, Look], look: Look) -> bool:
    now = around.get(look.pid)
    return now is not None and now.born == look.born and now.state != "Z"

"""Follows every process below each worker: which is stopped, which uses shared memory, which outlives its worker."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable

from launcher.common.procfs import ProcessInfo, descendants_of, list_processes
from launcher.node.process import WorkerProcess
from launcher.node.stale_resources import SharedMemory

INTERVAL_S = 1.0
REMOVE_TIMEOUT_S = 1.0


class ProcessMonitor:
    """Knows the processes of each worker, however they detached themselves, as of the last poll."""

    def __init__(self) -> None:
        self._shared_memory = SharedMemory()
        self._known: dict[int, dict[int, ProcessInfo]] = {}
        self._stopped_since: dict[tuple[int, int], float] = {}
        self._next = 0.0
        self._ending: dict[int, tuple[float, list[ProcessInfo]]] = {}
        """By pid of a worker that has ended: processes that it left, killed, and until when their end is awaited."""

    def poll(self, workers: Iterable[WorkerProcess], stopped_s: float) -> list[WorkerProcess]:
        """Workers of which some process has been stopped (SIGSTOP) for longer than ``stopped_s``.

        Lists the processes of this machine at most once a second.
        """
        now = time.monotonic()
        if self._ending:
            self._remove_ended(list_processes())
        if now < self._next:
            return []
        self._next = now + INTERVAL_S
        processes = list_processes()
        since: dict[tuple[int, int], float] = {}
        late: list[WorkerProcess] = []
        for worker in workers:
            # What is no longer below it, because its parent has ended, is still its own.
            known = {pid: info for pid, info in self._known.get(worker.pid, {}).items() if _is_same(processes, info)}
            if worker.pid in processes:
                known[worker.pid] = processes[worker.pid]
            known |= {process.pid: process for process in descendants_of(list(known), processes)}
            self._known[worker.pid] = known
            stopped = [(pid, info.start_time) for pid, info in known.items() if processes[pid].state == "T"]
            since |= {key: self._stopped_since.get(key, now) for key in stopped}
            if any(now - since[key] > stopped_s for key in stopped):
                late.append(worker)
        self._stopped_since = since
        self._shared_memory.attribute(dict(self._known))
        return late

    def ended(self, worker: WorkerProcess) -> None:
        """A worker has ended: processes that it left are killed, and its shared memory goes when they have ended."""
        processes = list_processes()
        left = [info for info in self._known.pop(worker.pid, {}).values() if _is_same(processes, info)]
        for info in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(info.pid, signal.SIGKILL)
        self._ending[worker.pid] = (time.monotonic() + REMOVE_TIMEOUT_S, left)
        self._remove_ended(processes if not left else list_processes())

    def wait_ended(self) -> None:
        """Waits until nothing is left of the workers that have ended, at most a second."""
        while self._ending:
            self._remove_ended(list_processes())
            time.sleep(0.01)

    def _remove_ended(self, processes: dict[int, ProcessInfo]) -> None:
        now = time.monotonic()
        for pid, (deadline, left) in list(self._ending.items()):
            if now > deadline or not any(_is_same(processes, info) for info in left):
                del self._ending[pid]
                self._shared_memory.remove(pid)


def _is_same(processes: dict[int, ProcessInfo], info: ProcessInfo) -> bool:
    now = processes.get(info.pid)
    return now is not None and now.start_time == info.start_time and now.state != "Z"

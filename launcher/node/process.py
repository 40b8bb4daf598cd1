"""A node's worker processes, one by one and in groups: a session and a log each, and an end that leaves nothing.

torch's elastic multiprocessing was read for this place and left out: on a failure its process context first ends the
other workers, with 30 s of patience that no caller can shorten, and only then reports; it writes two logs that cannot
be put in order again; and every agent would have to import torch. Its contract is kept: the torchrun environment, the
agent's store, and the error file that ``torch.distributed.elastic.multiprocessing.errors.record`` writes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from launcher.common.env import LAUNCHER_PARENT_PID, LAUNCHER_STOP_FILE
from launcher.common.procfs import Termination, is_resource_tracker, members
from launcher.events.log_tail import end_of
from launcher.events.schema import describe_exit
from launcher.layout.model import Process, Role
from launcher.stopping import survivor

TAIL_LINES = 20
KILL_TIMEOUT_S = 5.0
GROUP_GRACE_S = 1.0
EXEC_CHILD = Path(__file__).with_name("exec_child.py")


class WorkerProcess:
    """A started :class:`~launcher.layout.model.Process`.

    Must be made in the agent's main thread: the kernel ends a worker with the thread that started it.

    Args:
        process: what to run.
        environ: the complete environment of the process.
        log_dir: where ``NAME.log`` is written; appended to, if it exists.
        restart_count: how often it was restarted in this attempt.
    """

    def __init__(self, process: Process, environ: Mapping[str, str], log_dir: Path, restart_count: int = 0) -> None:
        self.process = process
        self.restart_count = restart_count
        self.log = log_dir / f"{process.name}.log"
        self.error_file = log_dir / f"{process.name}.error.json"
        # Of an earlier start of the same process.
        self.error_file.unlink(missing_ok=True)
        self.log_start = self.log.stat().st_size if self.log.exists() else 0
        program = sys.executable if process.argv[0] == "python" else process.argv[0]
        # One that comes before the new process ignores it would end it.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        try:
            with self.log.open("ab") as log:
                self._popen = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(EXEC_CHILD), program, *process.argv[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**environ, LAUNCHER_PARENT_PID: str(os.getpid())},
                    start_new_session=True,
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._started = time.monotonic()
        self._ended: float | None = None
        self._stop_file = environ.get(LAUNCHER_STOP_FILE)

    @property
    def pid(self) -> int:
        """Process id; also the id of its session and process group."""
        return self._popen.pid

    def age_s(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self._started

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it, or for a moment what it left in its process group, runs."""
        if self._popen.returncode is None and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            self._ended = self._ended or time.monotonic()
            # Python's resource tracker, for one, removes its parent's shared memory after the parent's end.
            if time.monotonic() - self._ended < GROUP_GRACE_S and members(self.pid):
                return None
            # Before it is reaped: from then on its number may become another process's.
            self._kill_group()
            self._popen.wait()
        return self._popen.returncode

    def terminate(self) -> None:
        """Asks the process itself to end; it decides what its children do. One that survives that is killed."""
        if self.poll() is None:
            survives = self._stop_file is not None and survivor(self._stop_file, self.pid).exists()
            self._popen.send_signal(signal.SIGKILL if survives else signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL to the whole process group, if it has not ended, and returns at once.

        Processes that clean up after the others (Python's resource tracker) are left until :meth:`poll` has found the
        worker's end.
        """
        if self.poll() is None:
            for pid in [*members(self.pid), self.pid]:
                if not is_resource_tracker(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def describe_end(self) -> str:
        """How it ended: ``exit code 1`` or ``signal 9 (SIGKILL)``."""
        code = self.poll()
        return "still running" if code is None else describe_exit(code)


def tail(path: Path, lines: int = TAIL_LINES, *, begin: int = 0) -> list[str]:
    """The last lines of a log; nothing before the byte ``begin``."""
    return [line.rstrip() for line in end_of(path, begin).splitlines()[-lines:]]


def stop(workers: Sequence[WorkerProcess], grace_s: float) -> None:
    """Ends workers together and waits for it; the shim names what the kernel cannot end."""
    Termination(partial(running_of, workers), grace_s).wait(grace_s + GROUP_GRACE_S + KILL_TIMEOUT_S)


def running_of(workers: Sequence[WorkerProcess]) -> list[WorkerProcess]:
    """Those that have not ended."""
    return [worker for worker in workers if worker.poll() is None]


class WorkerGroup:
    """Processes of one node that start and end together: its trainer ranks, or its part of one replica.

    Args:
        role: of all its processes.
        processes: what it consists of.
    """

    def __init__(self, role: Role, processes: Sequence[Process]) -> None:
        self.role = role
        self.processes = tuple(processes)
        self.restart_count: int | None = None
        """Of its workers; None before their first start."""

        self.workers: list[WorkerProcess] = []
        self.running: list[WorkerProcess] = []
        self.is_ready = False
        """Whether it has been reported that its engine answers."""

        self._termination: Termination[WorkerProcess] | None = None

    @property
    def is_stopping(self) -> bool:
        """Whether it is being ended, and some process still runs."""
        return self._termination is not None

    @property
    def has_ended_well(self) -> bool:
        """Whether every process was started, and ended by itself with 0."""
        return (
            len(self.workers) == len(self.processes) and not self.running and all(w.poll() == 0 for w in self.workers)
        )

    def started(self, restart_count: int, workers: Sequence[WorkerProcess]) -> None:
        """Its processes have been started once more."""
        self.restart_count, self.is_ready = restart_count, False
        self.workers, self.running = list(workers), list(workers)

    def stop(self, grace_s: float) -> None:
        """Begins to end its processes, and returns; :meth:`advance` goes on with it."""
        if self.running and not self.is_stopping:
            self._termination = Termination(partial(running_of, self.running), grace_s)

    def advance(self) -> list[WorkerProcess]:
        """Processes that have ended since the last call; while stopping, kills what has not ended in time."""
        if self._termination is not None:
            self._termination.advance()
        ended = [worker for worker in self.running if worker.poll() is not None]
        self.running = [worker for worker in self.running if worker not in ended]
        if not self.running:
            self._termination = None
        return ended

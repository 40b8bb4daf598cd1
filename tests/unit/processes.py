"""Processes that detach themselves in every way, and a look at whether any of them is left."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from tests.slurm_cluster.processes import NodeProcess, descendants

MARK = "LEFTOVER_MARK"

DETACHED = """
import os, signal, sys, time
# A double fork with sessions of their own, as daemons do; the innermost one ignores what asks it to end.
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        open(sys.argv[1], "w").close()
        time.sleep(600)
    os._exit(0)
os.wait()
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
"""
"""Starts a process that nothing but a subreaper finds; ``argv[1]`` exists once it is there."""

STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"


class Mark:
    """Marks everything that descends from a process, however it detaches itself, through its environment."""

    def __init__(self) -> None:
        self._value = secrets.token_hex(8)

    @property
    def env(self) -> Mapping[str, str]:
        """Goes into the environment of the first process."""
        return {MARK: self._value}

    def left(self) -> list[NodeProcess]:
        """Marked processes that live."""
        return [process for process in descendants(1) if process.environment.get(MARK) == self._value]

    def wait_gone(self, timeout_s: float) -> float:
        """Waits until none is left; the seconds that took.

        Raises:
            AssertionError: some are left after ``timeout_s``.
        """
        begin = time.monotonic()
        while left := self.left():
            if time.monotonic() - begin > timeout_s:
                raise AssertionError("left over:\n" + "\n".join(f"{p.pid} {p.command}" for p in left))
            time.sleep(0.02)
        return time.monotonic() - begin

    def kill(self) -> None:
        """Ends what a failed test left behind."""
        for process in self.left():
            os.kill(process.pid, 9)


def wait_for_file(path: Path, timeout_s: float = 20) -> None:
    """Returns once the file exists.

    Raises:
        AssertionError: it does not after ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)

"""The processes of a run on this node: signals them, lists what is left of them, and follows their memory.

- ``python -m launcher.testing.chaos.processes signal RUN_DIR PID RELATION SIGNAL [GO]`` signals a worker, or a process
  that RELATION finds from it: ``self``; ``agent``, its parent; any other word: the processes below the worker whose
  command line contains it. With GO it finds its targets and then waits for that file: a publication is over sooner than
  a program on another node has started.
- ``python -m launcher.testing.chaos.processes leaks RUN_DIR`` prints what is left of a run, as a JSON list.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from launcher.common.procfs import descendants, list_processes

FIND_TIMEOUT_S = 90.0
"""An engine imports for long before it starts others."""

GO_TIMEOUT_S = 180.0
POLL_S = 0.005
MEMORY_INTERVAL_S = 10.0
WARM_UP_S = 60.0
"""A process has loaded what it needs when it was first seen so long ago."""

NAMES = {b"launcher.node\0": "agent", b"submitit.core._submit\0": "shim"}


def belongs_to(pid: int, run_dir: Path) -> bool:
    """Whether a process is of a run, by its environment or its command line, also if it has detached itself."""
    needle = str(run_dir).encode()
    command = _read(pid, "cmdline")
    return needle in _read(pid, "environ") or (needle in command and b"launcher.testing.chaos" not in command)


def processes_of(run_dir: Path) -> list[str]:
    """Processes of this machine that belong to a run, each as one line."""
    pids = [pid for pid in list_processes() if pid != os.getpid() and belongs_to(pid, run_dir)]
    return [f"process {pid}: {_command(pid)[:200]}" for pid in pids]


def shared_memory(folder: Path = Path("/dev/shm")) -> list[str]:
    """What has a name in the shared memory of this node, each as one line."""
    try:
        return [f"shared memory {path.name}" for path in sorted(folder.iterdir())]
    except OSError:
        return []


def targets(pid: int, relation: str) -> list[int]:
    """Process ids of the targets; empty if there are none (yet)."""
    if relation == "self":
        return [pid]
    if relation == "agent":
        worker = list_processes().get(pid)
        return [] if worker is None else [worker.parent]
    return [below for below in descendants(pid) if relation in _command(below)]


def send_signal(run_dir: Path, worker: int, relation: str, signum: signal.Signals, go: Path | None) -> int:
    """Signals the targets; an exit code: 1 if there were none, 2 if ``go`` did not appear in time."""
    deadline = time.monotonic() + FIND_TIMEOUT_S
    while not (found := [pid for pid in targets(worker, relation) if belongs_to(pid, run_dir)]):
        if time.monotonic() > deadline or not belongs_to(worker, run_dir):
            return 1
        time.sleep(POLL_S)
    deadline = time.monotonic() + GO_TIMEOUT_S
    while go is not None and not go.exists():
        if time.monotonic() > deadline:
            return 2
        time.sleep(POLL_S)
    for target in found:
        if belongs_to(target, run_dir):  # its number may be another's by now
            os.kill(target, signum)
    print(f"{time.time():.3f} {' '.join(map(str, found))}", flush=True)
    return 0


class ProcessMemory:
    """Resident memory of each agent and shim of a run on this machine, early and late."""

    def __init__(self, run_dir: Path) -> None:
        self._needle = str(run_dir).encode()
        self._next = 0.0
        self._first: dict[tuple[str, int], float] = {}
        self._early: dict[tuple[str, int], float] = {}
        self._late: dict[tuple[str, int], float] = {}

    def sample(self) -> None:
        """Reads the sizes if the last time was :data:`MEMORY_INTERVAL_S` ago."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + MEMORY_INTERVAL_S
        for pid in list_processes():
            command, sizes = _read(pid, "cmdline"), _read(pid, "statm").split()
            name = next((name for words, name in NAMES.items() if words in command), None)
            if name is not None and self._needle in command and sizes:
                mib = int(sizes[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
                if now - self._first.setdefault((name, pid), now) >= WARM_UP_S:
                    self._early.setdefault((name, pid), mib)
                    self._late[name, pid] = mib

    def grown(self) -> dict[str, tuple[float, float]]:
        """MiB of each process that ran for longer than :data:`WARM_UP_S`: then, and when it was last seen."""
        return {f"{name} {pid}": (early, self._late[name, pid]) for (name, pid), early in self._early.items()}


def main() -> int:
    """The command line; see the module's docstring."""
    command, run_dir, *words = sys.argv[1:]
    if command == "leaks":
        print(json.dumps(processes_of(Path(run_dir)) + shared_memory()), flush=True)
        return 0
    worker, relation, name, *go = words
    return send_signal(Path(run_dir), int(worker), relation, signal.Signals[f"SIG{name}"], Path(go[0]) if go else None)


def _command(pid: int) -> str:
    return _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace")


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


if __name__ == "__main__":
    sys.exit(main())

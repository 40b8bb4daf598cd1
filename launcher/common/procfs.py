"""Processes of this machine: those below this one, those that others recorded, and the kernel's help in losing none.

Agents list all processes once a second. That reads one file for each, ``/proc/PID/stat``: 20 us, where psutil takes
150 us, and a node with many cores has thousands of kernel threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Orphans below this process are handed to it instead of to init (``prctl(2)``)."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def signal_on_parent_death(signum: signal.Signals) -> None:
    """This process gets ``signum`` when the thread that started it ends (``prctl(2)``); kept across ``exec``."""
    _prctl(PR_SET_PDEATHSIG, int(signum))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """One process at one moment."""

    pid: int
    parent: int
    group: int
    state: str
    """``R``, ``S``, ``T`` for stopped, ``Z`` for ended, ... (``proc_pid_stat(5)``)."""

    start_time: int
    """When it started, in the kernel's ticks: with the number, it names one process for good."""

    def terminate(self) -> None:
        """Sends SIGTERM."""
        _signal(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL."""
        _signal(self.pid, signal.SIGKILL)


def list_processes() -> dict[int, ProcessInfo]:
    """Every process of this machine, by its number."""
    found: dict[int, ProcessInfo] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(entry)) is not None:
            pid = int(entry.name)
            found[pid] = ProcessInfo(
                pid=pid, state=fields[0], parent=int(fields[1]), group=int(fields[2]), start_time=int(fields[19])
            )
    return found


def descendants_of(roots: Iterable[int], processes: Mapping[int, ProcessInfo]) -> list[ProcessInfo]:
    """Every process below the roots, parents before children.

    Zombies count as parents, too: one whose first thread has ended before its others still has its children.
    """
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: list[ProcessInfo] = []
    queue = list(roots)
    while queue:
        for child in children.get(queue.pop(), []):
            found.append(processes[child])
            queue.append(child)
    return found


def descendants(root: int) -> list[int]:
    """Every process below ``root`` that has not ended, parents before children."""
    return [process.pid for process in descendants_of([root], list_processes()) if process.state != "Z"]


def members(group: int) -> list[int]:
    """The living members of a process group beside its leader."""
    return [
        info.pid
        for info in list_processes().values()
        if info.group == group and info.pid != group and info.state != "Z"
    ]


def is_stopped(pid: int) -> bool:
    """Whether a process has been stopped by a signal, and not continued."""
    fields = _stat(Path(f"/proc/{pid}"))
    return fields is not None and fields[0] == "T"


def is_resource_tracker(pid: int) -> bool:
    """Whether a process is Python's resource tracker, which removes shared memory when those who made it have ended."""
    try:
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


class Terminable(Protocol):
    """What :class:`Termination` ends."""

    @property
    def pid(self) -> int:
        """Process id."""

    def terminate(self) -> None:
        """Requests its end."""

    def kill(self) -> None:
        """Ends it."""


P = TypeVar("P", bound=Terminable)


class Termination(Generic[P]):
    """Ends processes together without waiting for them: SIGTERM now, SIGKILL when a grace is over.

    Args:
        running: returns those of them that still run. One that it returns later for the first time is ended, too.
        grace_s: from SIGTERM to SIGKILL; with 0 the first :meth:`advance` sends SIGKILL.
    """

    def __init__(self, running: Callable[[], Sequence[P]], grace_s: float) -> None:
        self._running = running
        self._kill_at = time.monotonic() + grace_s
        self._signalled: set[tuple[int, bool]] = set()
        self._signal(running(), is_late=False)

    def advance(self) -> Sequence[P]:
        """Kills what is late; returns what still runs."""
        running = self._running()
        self._signal(running, is_late=time.monotonic() >= self._kill_at)
        return running

    def _signal(self, running: Sequence[P], *, is_late: bool) -> None:
        for process in running:
            if (process.pid, is_late) not in self._signalled:
                self._signalled.add((process.pid, is_late))
                if is_late:
                    process.kill()
                else:
                    process.terminate()

    def wait(self, timeout_s: float) -> Sequence[P]:
        """Waits for their end; returns what still runs after ``timeout_s``: processes that the kernel cannot end."""
        deadline = time.monotonic() + timeout_s
        while (running := self.advance()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return running


def end_descendants(grace_s: float, deadline_s: float = 10.0) -> list[int]:
    """Ends every process below this one: SIGTERM, ``grace_s`` later SIGKILL. A subreaper thus ends all it ever started.

    Returns:
        What is still there after ``deadline_s``: processes that the kernel cannot end.
    """

    def running() -> list[ProcessInfo]:
        reap()
        return [process for process in descendants_of([os.getpid()], list_processes()) if process.state != "Z"]

    return [process.pid for process in Termination(running, grace_s).wait(grace_s + deadline_s)]


def reap() -> None:
    """Collects every ended child, adopted ones included."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


def reap_adopted(own: Collection[int]) -> None:
    """Collects ended orphans that were handed to this process; its ``own`` children are left to who started them."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        # The kernel names the same one again until it is collected; an own one will be, soon.
        if ended is None or ended.si_pid in own:
            return
        os.waitpid(ended.si_pid, 0)


def _stat(entry: Path) -> list[str] | None:
    """State, parent, process group and so on (``proc_pid_stat(5)``); None for one that has gone."""
    try:
        # The command's name is in parentheses and may itself hold any character, so count from the last one.
        return (entry / "stat").read_text(errors="replace", encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None


def _signal(pid: int, signum: signal.Signals) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One process, for good: pids are used again, a pid with its start is not."""

    pid: int
    start: str
    """See :func:`start_of`."""

    @property
    def is_alive(self) -> bool:
        """Whether it runs; a zombie does not."""
        return start_of(self.pid) == self.start

    def send(self, signum: signal.Signals) -> bool:
        """Signals it; False if it has ended. Another process that got its pid meanwhile is never hit."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            # The handle holds on to one process, so that what is compared here is what gets the signal.
            if not self.is_alive:
                return False
            signal.pidfd_send_signal(handle, signum)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        return True


def start_of(pid: int) -> str | None:
    """When a process of this machine started: the boot, and clock ticks since then; None if there is none."""
    fields = _stat(Path(f"/proc/{pid}"))
    if fields is None or fields[0] in "ZX":
        return None
    return f"{BOOT_ID.read_text(encoding='utf-8').strip()}:{fields[19]}"


def living(identities: Collection[Identity]) -> list[Identity]:
    """Those that still run."""
    return [identity for identity in identities if identity.is_alive]

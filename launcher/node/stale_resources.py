"""Shared memory and scratch directories of a node: who owns them, and their removal after their owner was killed.

SLURM kills everything of a job at once, the shim included, when ``KillWait`` is over. So each shim records in its
scratch directory which shared memory the processes below it use, and the next shim on the node removes what is stale.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from launcher.common.jsonio import write_json
from launcher.common.procfs import list_processes

logger = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")
PREFIX = "launcher-"
RECORD = "shim.json"
SHORT = "/tmp"
SOCKET_PATH_BYTES = 107
"""Longest path of a Unix socket (``unix(7)``: 108 with the zero at its end)."""

SOCKET_NAME_BYTES = 45
"""A slash and an UUID, as vLLM names its sockets, and some room for others."""


def make_scratch() -> Path:
    """A directory of this user alone for sockets and the like of one node.

    A socket's path may have 107 bytes only, and vLLM adds 37 to that of the directory: where ``TMPDIR`` is too long
    for that, as a site's folder per job may be, ``/tmp`` is used.
    """
    scratch = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_short_folder()))
    record(scratch, {})
    return scratch


def _short_folder() -> str:
    folder = tempfile.gettempdir()
    name_bytes = len(PREFIX) + 8  # what mkdtemp adds
    if len(os.fsencode(folder)) + 1 + name_bytes + SOCKET_NAME_BYTES <= SOCKET_PATH_BYTES:
        return folder
    return SHORT if os.access(SHORT, os.W_OK) else folder


def record(scratch: Path, memory: Mapping[str, int]) -> None:
    """Writes down the names, and inodes, of shared memory that this process must remove."""
    start_time = list_processes()[os.getpid()].start_time
    me = {**_here(), "pid": os.getpid(), "start_time": start_time, "memory": dict(memory)}
    with contextlib.suppress(OSError):  # on a full disk it is not worth a run
        write_json(scratch / RECORD, me)


def remove_stale(folder: Path | None = None, shared: Path = FOLDER) -> list[str]:
    """Removes what shims of this user on this node left that do not run any more; names of the shared memory.

    What some process still uses stays until the next time.
    """
    removed = []
    processes = list_processes()
    folders = {Path(tempfile.gettempdir()), Path(_short_folder())} if folder is None else {folder}
    for scratch in [path for place in folders for path in place.glob(f"{PREFIX}*")]:
        try:
            left: dict[str, Any] = json.loads((scratch / RECORD).read_text(encoding="utf-8"))
            is_mine = scratch.stat().st_uid == os.getuid() and _here().items() <= left.items()
            shim = processes.get(left["pid"])
            if not is_mine or (shim is not None and shim.start_time == left["start_time"]):
                continue
            names = {name for name, inode in left["memory"].items() if _inode(shared / name) == inode}
        except (OSError, ValueError, KeyError):
            continue
        if names and any(names & used(pid, shared) for pid in processes):
            continue
        for name in names:
            (shared / name).unlink(missing_ok=True)
        removed += sorted(names)
        shutil.rmtree(scratch, ignore_errors=True)
    return removed


def inodes(names: set[str], shared: Path = FOLDER) -> dict[str, int]:
    """The inodes of those names that are there."""
    return {name: inode for name in sorted(names) if (inode := _inode(shared / name)) is not None}


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except OSError:
        return None


def _here() -> dict[str, Any]:
    """Identifies one node, and one PID namespace on it: several may share the directory."""
    return {"hostname": socket.gethostname(), "pids": Path("/proc/self/ns/pid").stat().st_ino}


_MAPPED = re.compile(rb"\s([0-9a-f]+):([0-9a-f]+) (\d+)\s+/dev/shm/")
"""Device and inode of what a process has mapped there (``proc_pid_maps(5)``)."""


class SharedMemory:
    """What appeared in ``/dev/shm`` since this was made, by who uses it.

    Python's resource tracker removes the memory of a process that is killed, unless it is killed, too. A file is taken
    for that of a process if that one has it mapped or open; it is removed when all processes of its owner have ended,
    and no other process of this machine has it.

    Args:
        folder: where the kernel shows shared memory.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._foreign = self._names()
        self._owned: dict[int, set[str]] = {}

    def attribute(self, processes: dict[int, Iterable[int]]) -> bool:
        """Finds out which processes use memory that is new; whether there is any.

        Args:
            processes: numbers of the processes, by owner.
        """
        is_news = False
        unknown = self._names() - self._foreign
        for names in self._owned.values():
            unknown -= names
        if unknown:
            for owner, pids in processes.items():
                for pid in pids:
                    found = used(pid, self._folder) & unknown
                    self._owned.setdefault(owner, set()).update(found)
                    is_news = is_news or bool(found)
        return is_news

    def owned(self, owner: int) -> set[str]:
        """Names of what an owner has, or had."""
        return set(self._owned.get(owner, ()))

    def remove(self, owner: int) -> list[str]:
        """All processes of an owner have ended; the names of what they had left, which is gone now."""
        left = self._owned.pop(owner, set()) & self._names()
        if left:
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    left -= used(int(entry.name), self._folder)
        for name in left:
            with contextlib.suppress(FileNotFoundError):
                (self._folder / name).unlink()
        if left:
            logger.info("removed shared memory that was left behind: %s", ", ".join(sorted(left)))
        return sorted(left)

    def _names(self) -> set[str]:
        try:
            return {path.name for path in self._folder.iterdir()}
        except OSError:
            return set()


def used(pid: int, folder: Path = FOLDER) -> set[str]:
    """Names in ``folder`` that a process has mapped or open; nothing for one that has ended or is not ours.

    They are identified by their inodes: a semaphore is made under another name than it has (``sem_open`` links it),
    and that one is all that the kernel shows of it.
    """
    try:
        found = {
            (os.makedev(int(major, 16), int(minor, 16)), int(inode))
            for major, minor, inode in _MAPPED.findall(Path(f"/proc/{pid}/maps").read_bytes())
        }
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(link.readlink()).startswith(f"{FOLDER}/"):
                    found.add(_identity(link.stat()))
        return {path.name for path in folder.iterdir() if _identity(path.lstat()) in found} if found else set()
    except OSError:
        return set()


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino

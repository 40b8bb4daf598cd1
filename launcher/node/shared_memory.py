"""Finds the shared memory of processes while they live, and removes what of it they leave behind."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

logger = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")

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
        """Looks who has what is new; whether somebody has.

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

    They are told by their inodes: a semaphore is made under another name than it has (``sem_open`` links it), and that
    one is all that the kernel shows of it.
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

"""What a guard that was killed itself could not remove: the next guard on the node does it.

SLURM kills everything of a job at once, the guard included, when its patience (``KillWait``) is over. So each guard
writes down, in its scratch directory, which shared memory the processes below it have.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.common.procfs import look_around
from launcher.node.shared_memory import FOLDER, used

PREFIX = "launcher-"
RECORD = "guard.json"
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
    me = {**_here(), "pid": os.getpid(), "born": look_around()[os.getpid()].born, "memory": dict(memory)}
    draft = scratch / f".{RECORD}"
    with contextlib.suppress(OSError):  # on a full disk it is not worth a run
        draft.write_text(json.dumps(me))
        draft.replace(scratch / RECORD)


def sweep(folder: Path | None = None, shared: Path = FOLDER) -> list[str]:
    """Removes what guards of this user on this node left that are not there any more; names of the shared memory.

    What some process still uses is left for the next time.
    """
    removed = []
    around = look_around()
    folders = {Path(tempfile.gettempdir()), Path(_short_folder())} if folder is None else {folder}
    for scratch in [path for place in folders for path in place.glob(f"{PREFIX}*")]:
        try:
            left: dict[str, Any] = json.loads((scratch / RECORD).read_text())
            is_mine = scratch.stat().st_uid == os.getuid() and _here().items() <= left.items()
            guard = around.get(left["pid"])
            if not is_mine or (guard is not None and guard.born == left["born"]):
                continue
            names = {name for name, inode in left["memory"].items() if _inode(shared / name) == inode}
        except (OSError, ValueError, KeyError):
            continue
        if names and any(names & used(pid, shared) for pid in around):
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
    """What tells one node, and one view of its processes, from another: they may share the directory."""
    return {"hostname": socket.gethostname(), "pids": Path("/proc/self/ns/pid").stat().st_ino}

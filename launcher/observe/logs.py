"""The logs of a run: which there are, which are selected, and what is new in them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from launcher.common.run_dir import attempt_dir
from launcher.observe.layouts import layout_of_attempt

JOB = "job"
ROLES = ("trainer", "inference", "agent", "helper", JOB)
_NAME = re.compile(r"(?P<role>trainer|inference|agent)-(?P<rank>\d+)(\.(?P<part>\d+))?")
TAIL_CHUNK = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """One log file of one attempt."""

    path: Path
    attempt: int | None
    """None: of the job, whichever attempt wrote there."""

    role: str
    rank: int | None
    """Trainer: global rank. Inference: replica. Agent: node rank."""

    @property
    def name(self) -> str:
        """``trainer-0003``."""
        return self.path.name.removesuffix(".log")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which logs are selected; None means any."""

    role: str | None = None
    rank: int | None = None
    node: int | None = None

    @property
    def is_open(self) -> bool:
        """True if nothing was chosen."""
        return self.role is None and self.rank is None and self.node is None


def logs_of(run: Path, attempt: int, choice: Choice) -> list[Log]:
    """The logs that an attempt has by now, the trainers' first."""
    names = _on_node(run, attempt, choice.node) if choice.node is not None else None
    found = [_log(path, attempt) for path in (attempt_dir(run, attempt) / "logs").glob("*.log")]
    chosen = [
        log
        for log in found
        if choice.role in (None, log.role)
        and choice.rank in (None, log.rank)
        and (names is None or log.name in names or (log.role == "agent" and log.rank == choice.node))
    ]
    return sorted(chosen, key=lambda log: (ROLES.index(log.role), log.rank or 0, log.name))


def job_logs(run: Path) -> list[Log]:
    """What SLURM itself wrote for the job."""
    paths = sorted((run / "submitit").glob("*_log.out"), key=lambda path: path.stat().st_mtime)
    return [Log(path=path, attempt=None, role=JOB, rank=None) for path in paths]


def _log(path: Path, attempt: int) -> Log:
    match = _NAME.fullmatch(path.name.removesuffix(".log"))
    if match is None:
        return Log(path=path, attempt=attempt, role="helper", rank=None)
    return Log(path=path, attempt=attempt, role=match["role"], rank=int(match["rank"]))


def _on_node(run: Path, attempt: int, node: int) -> set[str]:
    layout = layout_of_attempt(run, attempt)
    return {process.name for process in layout.nodes[node].processes} if node < len(layout.nodes) else set()


class LogReader:
    """Yields the whole lines of a log as they come, also after it was rotated, cut or made late.

    Args:
        lines: how many of the last lines to begin with; None for all.
    """

    def __init__(self, path: Path, lines: int | None) -> None:
        self._path = path
        self._lines = lines
        self._file: BinaryIO | None = None
        self._partial = b""

    def read(self) -> Iterator[str]:
        """What is new since the last call; never waits."""
        try:
            # Opened anew each time: a network filesystem shows another host's writes only after an open.
            file = self._path.open("rb")
        except FileNotFoundError:
            yield from self._drain()
            return
        old, self._file = self._file, file
        if old is None:
            if self._lines is not None:
                _seek_lines(file, self._lines)
        elif os.path.sameopenfile(old.fileno(), file.fileno()):
            position = old.tell()
            # It was truncated: what is there now is new.
            file.seek(position if position <= os.fstat(file.fileno()).st_size else 0)
        else:
            # Rotated. The old file may have grown once more before that.
            yield from self._lines_of(old)
        if old is not None:
            old.close()
        yield from self._drain()

    def close(self) -> Iterator[str]:
        """Closes the file; what was written without an end of line comes out now, as nothing follows any more."""
        if self._file is not None:
            self._file.close()
        if self._partial:
            yield self._partial.decode(errors="replace")
            self._partial = b""

    def _drain(self) -> Iterator[str]:
        if self._file is not None:
            yield from self._lines_of(self._file)

    def _lines_of(self, file: BinaryIO) -> Iterator[str]:
        *lines, self._partial = (self._partial + file.read()).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace").rstrip("\r")


def _seek_lines(file: BinaryIO, lines: int) -> None:
    """Moves to the begin of the last ``lines`` lines, reading no more than their bytes and one chunk."""
    end = position = file.seek(0, os.SEEK_END)
    tail = b""
    while position > 0 and tail[:-1].count(b"\n") < lines:
        position = max(position - TAIL_CHUNK, 0)
        file.seek(position)
        tail = file.read(end - position)
    kept = tail.splitlines(keepends=True)[-lines:] if lines else []
    file.seek(end - sum(map(len, kept)))

"""The ledger of a sweep: which run stands for which configuration, one JSON object a line, never rewritten.

Records, each with ``time`` and ``run`` (the identity): ``run`` (overrides), ``intent`` (run_dir, cluster; written
before anything is submitted), ``job`` (job_id), ``refused``, ``ended`` (outcome), ``cancelled``.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from launcher.common.errors import LauncherError
from launcher.common.procfs import Identity, start_of

LEDGER = "ledger.jsonl"
LOCK = "lock"
ABOUT = "sweep.json"
"""The metric of the sweep, as its last command set it."""

POLL_S = 0.2


@dataclass(slots=True, kw_only=True)
class LedgerEntry:
    """The records of one run together; a new submission starts it anew."""

    identity: str
    overrides: tuple[str, ...] = ()
    run_dir: Path | None = None
    cluster: str | None = None
    job_id: str | None = None
    submitted_at: float | None = None
    outcome: str | None = None
    """``completed``, ``failed`` or ``cancelled``, once somebody saw the end."""
    settled_at: float | None = None
    """When the job, or the outcome, was written here."""
    earlier: list[Path] = field(default_factory=list)
    """Run directories of earlier submissions."""

    @property
    def is_open(self) -> bool:
        """Whether its submission was begun, and no record shows its end."""
        return self.run_dir is not None and self.job_id is None and self.outcome is None and self.cluster == "slurm"


@dataclass(frozen=True, slots=True, kw_only=True)
class LockOwner:
    """The process that works on a sweep."""

    host: str = "?"
    process: Identity | None = None
    """None until the process has written its identity into the lock."""

    def __str__(self) -> str:
        return f"process {self.process.pid if self.process else '?'} on {self.host}"


class SweepBusy(LauncherError):
    """Another process works on the same sweep."""


class Ledger:
    """Reads and extends the ledger in a sweep directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._path = directory / LEDGER

    def exists(self) -> bool:
        """Whether the directory holds a sweep."""
        return self._path.exists()

    def entries(self) -> dict[str, LedgerEntry]:
        """All runs by identity, in the order in which they were added to the sweep."""
        found: dict[str, LedgerEntry] = {}
        lines = self._path.read_text(encoding="utf-8").split("\n") if self.exists() else []
        for line in lines:
            record = _parse(line)
            if record is not None:
                _apply(found, record)
        return found

    def append(self, *records: dict[str, Any]) -> None:
        """Adds records; they are on the disk when this returns. Call it with the lock held."""
        now = time.time()
        lines = [json.dumps({"time": now, **record}, separators=(",", ":"), default=str) + "\n" for record in records]
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        with os.fdopen(descriptor, "rb+") as file:
            # A writer that was killed may have left half a line, which must not swallow the next one.
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                lines.insert(0, "\n")
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def lock(self, timeout_s: float) -> Iterator[None]:
        """Holds the sweep for this process; the kernel releases it when the process ends.

        Raises:
            SweepBusy: another process still holds it after ``timeout_s``.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / LOCK).open("a+", encoding="utf-8") as file:
            self._wait(file, timeout_s)
            file.truncate(0)
            owner = {"host": socket.gethostname(), "pid": os.getpid(), "start": start_of(os.getpid())}
            file.write(json.dumps(owner))
            file.flush()
            yield

    def lock_owner(self) -> LockOwner | None:
        """Who holds the sweep now, if it is not free."""
        try:
            with (self.directory / LOCK).open("r", encoding="utf-8") as file:
                return None if _try_lock(file) else _who(file)
        except (OSError, LauncherError):
            # Without a lock file no command runs; a directory of another user may not be readable.
            return None

    def _wait(self, file: IO[str], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise SweepBusy(
                    f"Another command still works on the sweep {self.directory} after {timeout_s:g} s: {_who(file)}."
                    " HINT: wait for it, or end it."
                )
            time.sleep(POLL_S)  # the kernel can wait for a lock, but not with a deadline


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # As on Lustre that was mounted without them.
        raise LauncherError(
            f"Two commands cannot be kept apart: the filesystem of {file.name} has no file locks ({error.strerror})."
            " HINT: set `output_dir` to a filesystem that has, or have it mounted with them (`flock`)."
        ) from error
    return True


def _who(file: IO[str]) -> LockOwner:
    file.seek(0)
    try:
        data = json.loads(file.read())
    except ValueError:
        return LockOwner()
    return LockOwner(host=data["host"], process=Identity(pid=data["pid"], start=data["start"]))


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        # Half a line, of a writer that was killed before it did what it recorded.
        return None
    return record if isinstance(record, dict) and isinstance(record.get("run"), str) else None


def _apply(entries: dict[str, LedgerEntry], record: dict[str, Any]) -> None:
    entry = entries.setdefault(record["run"], LedgerEntry(identity=record["run"]))
    if record.get("record") in ("job", "ended", "cancelled"):
        entry.settled_at = record["time"]
    match record.get("record"):
        case "run":
            entry.overrides = _words(record.get("overrides"))
        case "intent":
            if entry.run_dir is not None:
                entry.earlier.append(entry.run_dir)
            entry.run_dir, entry.cluster = Path(record["run_dir"]), record["cluster"]
            entry.job_id, entry.outcome, entry.submitted_at, entry.settled_at = None, None, record["time"], None
        case "job":
            entry.job_id = record["job_id"]
        case "refused":
            entry.run_dir = None
        case "ended":
            entry.outcome = record["outcome"]
        case "cancelled":
            entry.outcome = "cancelled"


def _words(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else ()

"""The attempts of a run: numbers on which all nodes agree, how each attempt ended, and how often it may end so."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Any

from launcher.common.run_dir import attempt_dir, write_atomically

BEGIN = "begin.json"
END = "end.json"


class End(StrEnum):
    """How an attempt ended."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    PREEMPTED = "preempted"
    """Or requeued by an administrator, which without a preemption's own signal looks alike."""

    STOPPED = "stopped"
    """Somebody asked for it (USR2)."""

    LOST = "lost"
    """Without a word: the first node was lost, or everything was killed."""


def claim(run_dir: Path) -> int:
    """Takes the next number. Two that do it at the same time get different ones, because a directory is made once."""
    folder = run_dir / "attempts"
    folder.mkdir(exist_ok=True)
    number = 1
    while True:
        with contextlib.suppress(FileExistsError):
            (folder / str(number)).mkdir()
            return number
        number += 1


def record_begin(run_dir: Path, attempt: int, job_id: str | None) -> None:
    """Node 0 has started. What it shows about the attempt before is corrected in that one's record."""
    write_atomically(attempt_dir(run_dir, attempt) / BEGIN, {"job_id": job_id})
    before = next((n for n in range(attempt - 1, 0, -1) if _read(attempt_dir(run_dir, n) / BEGIN) is not None), None)
    if before is None or job_id is None or (_read(attempt_dir(run_dir, before) / BEGIN) or {}).get("job_id") != job_id:
        return
    end = _read(attempt_dir(run_dir, before) / END)
    if end is not None and end["end"] == End.STOPPED and not end.get("is_requeued", False):
        # It ended without requeueing the job, and here is the job's next attempt: SLURM preempted it, and killed it
        # before that was known.
        record_end(run_dir, before, End.PREEMPTED)


def record_end(run_dir: Path, attempt: int, end: End, *, is_requeued: bool = False) -> None:
    """How the attempt ends, so far as is known now; a later call corrects an earlier one. On a full disk it is lost.

    Args:
        is_requeued: the attempt, which was stopped on request, requeues its job itself; else the next attempt shows
            that SLURM, or a person, did.
    """
    with contextlib.suppress(OSError):
        record = {"end": end.value, **({"is_requeued": True} if is_requeued else {})}
        write_atomically(attempt_dir(run_dir, attempt) / END, record)


def ends(run_dir: Path, attempt: int, job_id: str | None) -> Counter[End]:
    """How the earlier attempts of the same job ended. A run that a person resumed, as a new job, starts from zero."""
    found: Counter[End] = Counter()
    for number in range(attempt - 1, 0, -1):
        begin = _read(attempt_dir(run_dir, number) / BEGIN)
        # A number that was taken and never used says nothing.
        if begin is None:
            continue
        if job_id is None or begin.get("job_id") != job_id:
            break
        end = _read(attempt_dir(run_dir, number) / END)
        found[End(end["end"]) if end is not None else End.LOST] += 1
    return found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None

"""The run directory: where each file is, and its attempts: numbers on which all nodes agree, and how each one ended."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from launcher.common.jsonio import append_line, write_json

CONFIG = "config.yaml"
LAYOUT = "layout.json"
MODEL = "model"
SUBMISSION = "submission.json"
JOBS = "jobs.jsonl"
"""One line for each time the run was handed to a cluster: what it takes to find the job again."""

SUBMITIT = "submitit"
"""What submitit keeps of the run's jobs, and the logs of their scripts."""

EVENTS = "events.jsonl"
"""Of an attempt: its event log."""

EXIT_CODE = "exit_code"
"""Of an attempt on SLURM: the run's exit code, which node 0 writes for the job script."""

CONTROL = "control.json"
"""Of an attempt: where its control service listens."""


def read_submission(run_dir: Path) -> dict[str, Any] | None:
    """When and to which cluster a run was submitted; None if somebody started it by hand."""
    path = run_dir / SUBMISSION
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def record_job(run_dir: Path, cluster: str, job: Mapping[str, Any]) -> None:
    """Adds a job to those of the run; the last one is the current one."""
    append_line(run_dir / JOBS, {"time": time.time(), "cluster": cluster, **job})


def last_job(run_dir: Path) -> dict[str, Any] | None:
    """The record of the newest job; None if the run was never handed to a cluster from here."""
    path = run_dir / JOBS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return dict(json.loads(lines[-1])) if lines else None


def attempt_dir(run_dir: Path, attempt: int) -> Path:
    """Where one start of the run keeps its events and logs."""
    return run_dir / "attempts" / str(attempt)


def model_path(given: str | None, run_dir: Path) -> Path:
    """The directory of the model: the one that the configuration gives (``model.path``), or the run's own."""
    return Path(given) if given else run_dir / MODEL


def checkpoint_dir(given: str | None, run_dir: Path) -> Path:
    """Where the run's checkpoints lie: below ``checkpoint.dir`` if that is given, else in the run directory."""
    return Path(given).absolute() / run_dir.name if given else run_dir / "checkpoint"


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
    """On request (USR2)."""

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
    write_json(attempt_dir(run_dir, attempt) / BEGIN, {"job_id": job_id})
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
        write_json(attempt_dir(run_dir, attempt) / END, record)


def ends(run_dir: Path, attempt: int, job_id: str | None) -> Counter[End]:
    """How the earlier attempts of the same job ended. A run that a person resumed, as a new job, starts from zero."""
    found: Counter[End] = Counter()
    for number in range(attempt - 1, 0, -1):
        begin = _read(attempt_dir(run_dir, number) / BEGIN)
        # A number that was taken and never used does not count.
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

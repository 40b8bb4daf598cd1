"""The state of every run of a sweep: from the ledger, the run directories, and one query to SLURM for all jobs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from launcher.common.recorded_processes import living
from launcher.common.run_dir import last_job
from launcher.config.metric import Metric
from launcher.events.reader import attempts, events_path
from launcher.observe.run_status import guards_of
from launcher.slurm.query import job_states
from launcher.slurm.states import JobState
from launcher.sweep.ledger import Ledger, LedgerEntry

_WANTED = (b'"step"', b'"finished"', b'"submitted"', b'"attempt"')


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """The events of a run, as far as a sweep wants to know them."""

    has_started: bool = False
    job_id: str | None = None
    """As the job itself wrote it."""
    outcome: str | None = None
    """``completed``, ``failed``, ``cancelled``, or whatever its last event calls its end."""
    seconds: float | None = None
    steps: int = 0
    planned: int | None = None
    curve: tuple[tuple[int, float], ...] = ()
    """The metric by step."""


def read_progress(run_dir: Path, metric: Metric) -> RunProgress:
    """Everything written so far, of all attempts; steps that were done again count once."""
    curve: list[tuple[int, float]] = []
    facts: dict[str, Any] = {}
    numbers = attempts(run_dir)
    for number in numbers:
        facts.pop("outcome", None)
        for event in _events(events_path(run_dir, number)):
            match event.get("event"):
                case "submitted":
                    facts["job_id"] = event.get("job_id")
                case "finished":
                    facts |= {"outcome": event.get("outcome", "completed"), "seconds": event.get("seconds")}
                case "step":
                    _add_step(event, metric.name, curve, facts)
    return RunProgress(has_started=bool(numbers), curve=tuple(curve), **facts)


def _events(path: Path) -> list[dict[str, Any]]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for line in data.split(b"\n"):
        if any(word in line for word in _WANTED):
            try:
                event = json.loads(line)
            except ValueError:
                continue  # still being written, or its writer died over it
            if isinstance(event, dict):
                found.append(event)
    return found


def _add_step(event: dict[str, Any], name: str, curve: list[tuple[int, float]], facts: dict[str, Any]) -> None:
    step, value, planned = event.get("step"), event.get(name), event.get("steps")
    if not isinstance(step, int):
        return
    facts["steps"] = step
    if isinstance(planned, int):
        facts["planned"] = planned
    while curve and curve[-1][0] >= step:
        curve.pop()
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        curve.append((step, float(value)))


class Status(StrEnum):
    """What a person wants to know of a run."""

    DONE = "done"
    RUNNING = "running"
    QUEUED = "queued"
    FAILED = "failed"
    CANCELLED = "cancelled"
    MISSING = "missing"

    @property
    def is_active(self) -> bool:
        """Whether it runs, or waits for its nodes."""
        return self in (Status.RUNNING, Status.QUEUED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a sweep, now."""

    entry: LedgerEntry
    status: Status
    progress: RunProgress
    value: float | None
    """The metric, as one number."""
    why: str | None = None
    """SLURM's word for an end that was not good."""


def run_statuses(ledger: Ledger, metric: Metric, *, is_held: bool | None = None) -> list[Run]:
    """All runs, in the order of the ledger.

    Args:
        is_held: whether another process works on the sweep; looked up if None. What nobody works on is not under way.

    Raises:
        LauncherError: SLURM does not answer, so nobody knows.
    """
    entries = [_resumed(entry) for entry in ledger.entries().values()]
    jobs = job_states(sorted(entry.job_id for entry in entries if entry.job_id is not None and entry.outcome is None))
    is_held = ledger.holder() is not None if is_held is None else is_held
    return [_run(entry, _own(entry, jobs.get(entry.job_id or "")), metric, is_held) for entry in entries]


def _own(entry: LedgerEntry, job: JobState | None) -> JobState | None:
    """The answer, unless another job has the same id by now."""
    if job is None or entry.run_dir is None:
        return job
    return job if job.writes_below(entry.run_dir.parent) else None


def counted(statuses: Iterable[Status], more: Sequence[str] = ()) -> str:
    """``7 done, 2 running``."""
    counts = Counter(statuses)
    return ", ".join([*(f"{counts[status]} {status}" for status in Status if counts[status]), *more])


def _resumed(entry: LedgerEntry) -> LedgerEntry:
    """With the job of ``launcher resume``, which knows nothing of sweeps, if it is newer than what the ledger says."""
    job = last_job(entry.run_dir) if entry.run_dir is not None else None
    if job is None or entry.settled_at is None or job["time"] < entry.settled_at:
        return entry
    return replace(entry, job_id=job.get("job_id"), outcome=None)


def _run(entry: LedgerEntry, job: JobState | None, metric: Metric, is_held: bool) -> Run:
    progress = RunProgress() if entry.run_dir is None else read_progress(entry.run_dir, metric)
    status, why = _status(entry, job, progress, is_held)
    return Run(entry=entry, status=status, progress=progress, value=metric.value(list(progress.curve)), why=why)


def _status(
    entry: LedgerEntry, job: JobState | None, progress: RunProgress, is_held: bool
) -> tuple[Status, str | None]:
    if entry.run_dir is None:
        return Status.MISSING, None
    if job is not None:
        # SLURM knows best: a job that its last attempt called failed may be in the queue again.
        return _of_job(job)
    # A run that was cancelled in the moment of its end has ended as it says.
    outcome = progress.outcome if entry.outcome in (None, "cancelled") else entry.outcome
    if outcome is not None or entry.outcome is not None:
        return _of_outcome(outcome or entry.outcome or "")
    return _without_a_word(entry, is_held)


def _without_a_word(entry: LedgerEntry, is_held: bool) -> tuple[Status, str | None]:
    """Of a run whose end nobody has seen."""
    if entry.cluster == "local":
        is_alive = is_held or living(guards_of(last_job(entry.run_dir or Path()) or {}))
        return (Status.RUNNING, None) if is_alive else (Status.FAILED, "ended with the process that started it")
    if entry.job_id is None:
        return (Status.QUEUED, "being submitted") if is_held else (Status.MISSING, None)
    return Status.FAILED, "no longer known to SLURM"


def _of_job(job: JobState) -> tuple[Status, str | None]:
    if not job.is_final:
        return (Status.QUEUED if job.is_waiting else Status.RUNNING), None
    if job.name == "COMPLETED":
        return Status.DONE, None
    return (Status.CANCELLED if job.name == "CANCELLED" else Status.FAILED), job.name


def _of_outcome(outcome: str) -> tuple[Status, str | None]:
    known = {"completed": Status.DONE, "cancelled": Status.CANCELLED, "failed": Status.FAILED}
    return known.get(outcome, Status.FAILED), None if outcome in known else outcome

"""The state of every run of a sweep: from the ledger, the run directories, and one query to SLURM for all jobs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeGuard

from launcher.common.procfs import living
from launcher.common.run_dir import last_job
from launcher.config.metric import Metric
from launcher.events.fold import apply_event
from launcher.events.reader import attempts, events_path, parse_event
from launcher.events.run_state import RunState
from launcher.observe.run_status import shims_of
from launcher.slurm.query import job_states
from launcher.slurm.states import JobState
from launcher.sweep.ledger import Ledger, LedgerEntry

_WANTED = (b'"step"', b'"finished"', b'"submitted"', b'"attempt"')
"""Only lines with these words are parsed: a sweep may have a thousand runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """The state of a run, as far as a sweep needs it."""

    job_id: str | None = None
    """As the job itself wrote it."""

    outcome: str | None = None
    """``completed``, ``failed``, ``cancelled``, or another outcome that its last event names."""

    seconds: float | None = None
    steps: int = 0
    planned: int | None = None
    curve: tuple[tuple[int, float], ...] = ()
    """The metric by step."""


def read_progress(run_dir: Path, metric: Metric) -> RunProgress:
    """Everything written so far, of all attempts; steps that were done again count once."""
    state = RunState()
    for number in attempts(run_dir):
        state.outcome = None  # that of an earlier attempt is not the run's
        for line in events_path(run_dir, number).read_bytes().splitlines():
            if any(word in line for word in _WANTED) and (event := parse_event(line)) is not None:
                apply_event(state, event)
    values = ((step.step, getattr(step, metric.name, step.extra.get(metric.name))) for step in state.steps)
    return RunProgress(
        job_id=state.job_id,
        outcome=state.outcome,
        seconds=state.seconds,
        steps=state.last_step.step if state.last_step is not None else 0,
        planned=state.steps_planned,
        curve=tuple((step, float(value)) for step, value in values if _is_number(value)),
    )


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Status(StrEnum):
    """The state of a run in one word."""

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
    """SLURM's state of a job that did not end well."""


def run_statuses(ledger: Ledger, metric: Metric, *, is_locked: bool | None = None) -> list[Run]:
    """All runs, in the order of the ledger.

    Args:
        is_locked: whether another process works on the sweep; looked up if None. Without
            such a process nothing is under way.

    Raises:
        LauncherError: SLURM does not answer, so the states are unknown.
    """
    entries = [_resumed(entry) for entry in ledger.entries().values()]
    jobs = job_states(sorted(entry.job_id for entry in entries if entry.job_id is not None and entry.outcome is None))
    is_locked = ledger.lock_owner() is not None if is_locked is None else is_locked
    return [_run(entry, _own(entry, jobs.get(entry.job_id or "")), metric, is_locked) for entry in entries]


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
    """With the job of ``launcher resume``, which does not write into the ledger, if it is newer than the ledger's."""
    job = last_job(entry.run_dir) if entry.run_dir is not None else None
    if job is None or entry.settled_at is None or job["time"] < entry.settled_at:
        return entry
    return replace(entry, job_id=job.get("job_id"), outcome=None)


def _run(entry: LedgerEntry, job: JobState | None, metric: Metric, is_locked: bool) -> Run:
    progress = RunProgress() if entry.run_dir is None else read_progress(entry.run_dir, metric)
    status, why = _status(entry, job, progress, is_locked)
    return Run(entry=entry, status=status, progress=progress, value=metric.value(list(progress.curve)), why=why)


def _status(
    entry: LedgerEntry, job: JobState | None, progress: RunProgress, is_locked: bool
) -> tuple[Status, str | None]:
    if entry.run_dir is None:
        return Status.MISSING, None
    if job is not None:
        # SLURM knows best: a job that its last attempt called failed may be in the queue again.
        return _of_job(job)
    # A run that was cancelled in the moment of its end has ended as its own log records.
    outcome = progress.outcome if entry.outcome in (None, "cancelled") else entry.outcome
    if outcome is not None or entry.outcome is not None:
        return _of_outcome(outcome or entry.outcome or "")
    return _unfinished(entry, is_locked)


def _unfinished(entry: LedgerEntry, is_locked: bool) -> tuple[Status, str | None]:
    """Of a run without a recorded end."""
    if entry.cluster == "local":
        is_alive = is_locked or living(shims_of(last_job(entry.run_dir or Path()) or {}))
        return (Status.RUNNING, None) if is_alive else (Status.FAILED, "ended with the process that started it")
    if entry.job_id is None:
        return (Status.QUEUED, "being submitted") if is_locked else (Status.MISSING, None)
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

"""One word for each run's state: from its own log, from SLURM (one question for all runs), or from its processes."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.common.codec import CodecError, from_json
from launcher.common.jsonio import write_json
from launcher.common.procfs import Identity, living
from launcher.observe.run_summary import RunSummary, summarize
from launcher.slurm.client import ControllerAway
from launcher.slurm.query import job_states
from launcher.slurm.states import BOOTING, ENDING, FROZEN, JobState

JOB_STATE = "job_state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedJobState:
    """One answer, and when it was given."""

    job_id: str
    attempt: int | None
    """The newest attempt at that time; a newer one makes the answer old."""

    at: float
    state: JobState | None
    """None: SLURM had forgotten the job, and the run itself had said how it ended."""

    @property
    def is_final(self) -> bool:
        """True if nothing can follow."""
        return self.state is None or self.state.is_final


def _cached_job_state(run: Path, job_id: str, attempt: int | None) -> CachedJobState | None:
    """The cached state of this job; None if nothing is, or if the run has gone on since."""
    try:
        cached = from_json((run / JOB_STATE).read_bytes(), CachedJobState)
    except (OSError, CodecError):
        return None
    return cached if cached.job_id == job_id and cached.attempt == attempt else None


def _keep_job_state(run: Path, job_id: str, attempt: int | None, state: JobState | None) -> None:
    """Keeps an answer."""
    cached = CachedJobState(job_id=job_id, attempt=attempt, at=time.time(), state=state)
    # Another user's run can be shown, too; then nothing is cached.
    with contextlib.suppress(OSError):
        write_json(run / JOB_STATE, asdict(cached))


PATIENCE_S = 10.0
"""Longest wait for SLURM's controller: a person waits in front of it."""

FINAL_STATES = {"TIMEOUT": "time limit", "NODE_FAIL": "node failed", "OUT_OF_MEMORY": "out of memory"}
PHASE_STATES = {"starting": "starting", "training": "running", "draining": "draining"}
PREPARED, LOST, UNKNOWN = "prepared", "lost", "unknown"
"""Never started; gone without a word; nobody who could tell was queried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """A run, and the state it is in."""

    summary: RunSummary
    state: str
    """``queued``, ``held``, ``starting``, ``running``, ``draining``, ``completed``, ``failed``, ``cancelled``, ..."""

    is_over: bool
    is_certain: bool = True
    """False if it is the last that was known, because who could tell does not answer."""

    job: JobState | None = None
    """SLURM's answer, or the last one."""


def statuses(
    summaries: Sequence[RunSummary], *, timeout_s: float = PATIENCE_S, may_query: bool = True
) -> tuple[list[RunStatus], str | None]:
    """The state of each run, in the same order, and why some of them are uncertain, if they are.

    Args:
        may_query: whether SLURM may be queried; else its last known answers count.
    """
    cached: dict[int, CachedJobState] = {}
    for index, run in enumerate(summaries):
        if run.job_id is not None and (last := _cached_job_state(run.path, run.job_id, run.attempt)) is not None:
            cached[index] = last
    queried = {
        i: run.job_id
        for i, run in enumerate(summaries)
        if may_query and run.job_id is not None and not _is_final(cached.get(i))
    }
    problem: str | None = None
    answers: dict[str, JobState] = {}
    try:
        answers = job_states(sorted(set(queried.values())), timeout_s=timeout_s)
    except ControllerAway as error:
        problem = str(error)
    found: list[RunStatus] = []
    for index, run in enumerate(summaries):
        if run.job_id is None:
            found.append(_local(run) if run.job is not None else _unsubmitted(run))
        elif index in queried and problem is None:
            found.append(_answered(run, _own(run, answers.get(run.job_id)), cached.get(index)))
        else:
            found.append(_cached(run, cached.get(index)))
    return found, problem


def _is_final(cached: CachedJobState | None) -> bool:
    return cached is not None and cached.is_final


def _own(run: RunSummary, job: JobState | None) -> JobState | None:
    """The answer, unless it is about another job with the same id: then SLURM has forgotten the run's own."""
    if job is None or run.job is None:  # a script that was submitted by hand writes its log anywhere
        return job
    return job if job.writes_below(run.path.parent) else None


def _answered(run: RunSummary, job: JobState | None, cached: CachedJobState | None) -> RunStatus:
    assert run.job_id is not None
    if (job is not None or run.outcome is not None) and (cached is None or cached.state != job):
        _keep_job_state(run.path, run.job_id, run.attempt, job)
    if job is not None:
        return RunStatus(summary=run, state=_state(run, job), is_over=job.is_final, job=job)
    # SLURM has forgotten the job, so it has ended; only its own log, or an earlier look, can say how.
    return RunStatus(summary=run, state=run.outcome or LOST, is_over=True)


def _cached(run: RunSummary, cached: CachedJobState | None) -> RunStatus:
    if cached is None:
        state = run.outcome or PHASE_STATES.get(run.phase or "", "queued")
        return RunStatus(summary=run, state=state, is_over=run.outcome is not None, is_certain=False)
    is_over = cached.is_final or run.outcome is not None
    state = (run.outcome or LOST) if cached.state is None else _state(run, cached.state)
    return RunStatus(summary=run, state=state, is_over=is_over, is_certain=cached.is_final, job=cached.state)


def _local(run: RunSummary) -> RunStatus:
    job = run.job or {}
    if job.get("host") != socket.gethostname():
        state = run.outcome or PHASE_STATES.get(run.phase or "", "starting")
        return RunStatus(summary=run, state=state, is_over=run.outcome is not None, is_certain=run.outcome is not None)
    is_alive = bool(living(shims_of(job)))
    state = PHASE_STATES.get(run.phase or "", "starting") if is_alive else run.outcome or LOST
    return RunStatus(summary=run, state=state, is_over=not is_alive)


def _unsubmitted(run: RunSummary) -> RunStatus:
    """Made by hand, or by an earlier version: only the log can tell."""
    state = run.outcome or (PREPARED if run.phase is None else UNKNOWN)
    return RunStatus(summary=run, state=state, is_over=run.outcome is not None)


def shims_of(job: dict[str, Any]) -> list[Identity]:
    """The shims in the record of a local run."""
    return [Identity(pid=int(shim["pid"]), start=str(shim["start"])) for shim in job.get("shims", ())]


def _state(run: RunSummary, job: JobState) -> str:  # noqa: PLR0911  (one line per word)
    if job.is_final:
        if job.name in ("COMPLETED", "FAILED", "CANCELLED"):
            # The run knows better than its exit code, except that a job which failed did not complete.
            is_told = run.outcome is not None and not (run.outcome == "completed" and job.name != "COMPLETED")
            return str(run.outcome) if is_told else job.name.lower()
        return FINAL_STATES.get(job.name, job.name.lower().replace("_", " "))
    if job.is_held:
        return "held"
    if job.is_waiting:
        return "queued" if run.attempt is None else "requeued"
    if job.name in BOOTING:
        return "booting"
    if job.name in FROZEN:
        return "suspended"
    if job.name in ENDING or run.outcome is not None:
        return "ending"
    return PHASE_STATES.get(run.phase or "", "starting")


def open_first(found: Iterable[RunStatus]) -> list[RunStatus]:
    """What is not over before what is; the newest first in both."""
    return sorted(found, key=lambda status: (status.is_over, -status.summary.submitted))


SHORTEST_S = 1.0
LONGEST_S = 15.0
GROWTH = 1.5


class RunWatch:
    """The state of one run, queried for as often as one likes.

    The interval between two looks grows while nothing changes; the first look happens at once.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._interval_s = SHORTEST_S
        self.problem: str | None = None
        """Why the state is only the last known one; None if it is not."""

        self._status = self._read()
        self._next = time.monotonic() + self._interval_s

    @property
    def status(self) -> RunStatus:
        """The state, at most some seconds old."""
        if not self._status.is_over and time.monotonic() >= self._next:
            before = self._status
            self._status = self._read()
            is_news = (before.state, before.job) != (self._status.state, self._status.job)
            self._interval_s = SHORTEST_S if is_news else min(self._interval_s * GROWTH, LONGEST_S)
            self._next = time.monotonic() + self._interval_s
        return self._status

    def refresh(self) -> RunStatus:
        """Looks again with the next question, and often after that: something is about to change."""
        self._interval_s = SHORTEST_S
        self._next = 0.0
        return self.status

    def _read(self) -> RunStatus:
        (status,), self.problem = statuses([summarize(self._run)])
        return status

"""What a run has come to, from the ends of its event log: a thousand runs are read within a second."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.common.jsonio import tail
from launcher.common.run_dir import JOBS, last_job, read_submission
from launcher.events.fold import apply_event
from launcher.events.reader import events_path, parse_event
from launcher.events.run_state import RunState

HEAD_BYTES = 8 << 10
HEAD_LINES = 8
TAIL_BYTES = 4 << 10
LONG_TAIL_BYTES = 512 << 10
"""Read once more if the short tail holds no step: thousands of engines may have ended after the last one."""

AVERAGED_STEPS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A run by its own files; what they do not hold is None. Times are unix seconds."""

    path: Path
    submitted: float
    cluster: str | None
    job: dict[str, Any] | None
    """The newest record of ``jobs.jsonl``."""

    job_id: str | None
    attempt: int | None
    nodes: int | None
    step: int | None
    steps: int | None
    """Planned."""

    reward: float | None
    """Mean of the last steps."""

    phase: str | None
    """``starting``, ``training``, ``draining`` or None before the first attempt."""

    outcome: str | None


def summarize(run: Path) -> RunSummary:
    """Reads the head and the tail of the newest attempt's log. Files may be missing or half written."""
    submission, job, attempt = _submission(run), _last_job(run), newest_attempt(run)
    state = RunState() if attempt is None else _state_by_ends(run, attempt)
    steps = state.steps
    if not steps and attempt is not None and attempt > 1:
        # What the attempt before had reached, until this one has a step of its own.
        steps = _state_by_ends(run, attempt - 1).steps
    rewards = [step.reward for step in steps[-AVERAGED_STEPS:] if step.reward is not None]
    return RunSummary(
        path=run,
        submitted=float(submission.get("time") or run.stat().st_mtime),
        cluster=submission.get("cluster"),
        job=job,
        job_id=_job_id(job, state),
        attempt=attempt,
        nodes=state.nodes or submission.get("nodes"),
        step=steps[-1].step if steps else None,
        steps=steps[-1].steps if steps else None,
        reward=sum(rewards) / len(rewards) if rewards else None,
        phase=None if attempt is None else _phase(state),
        outcome=state.outcome,
    )


def job_id_of(run: Path) -> str | None:
    """The SLURM job of a run; None for a local one, or one that no cluster ever had."""
    job, attempt = _last_job(run), newest_attempt(run)
    if job is not None and job.get("cluster") == "local":
        return None
    return _job_id(job, RunState() if attempt is None else _state_by_ends(run, attempt, tail_bytes=0))


def newest_attempt(run: Path) -> int | None:
    """The newest attempt that has a directory."""
    try:
        names = os.listdir(run / "attempts")  # noqa: PTH208  (names are enough)
        return max((int(name) for name in names if name.isdecimal()), default=None)
    except OSError:
        return None


def _job_id(job: dict[str, Any] | None, state: RunState) -> str | None:
    """The newer of what was submitted from here and of what ran: a script can also be submitted by hand."""
    submitted, ran = (job or {}).get("job_id"), state.job_id
    if submitted is None or ran is None:
        return submitted or ran
    return str(ran if (state.started_at or 0.0) > float((job or {}).get("time", 0)) else submitted)


def _phase(state: RunState) -> str:
    if state.draining_at is not None:
        return "draining"
    # A user's own trainer need not report steps or phases; then it is only known to run.
    has_trainers = any(process.role == "trainer" for process in state.processes.values())
    has_phases = any(phase.who.startswith("trainer-") for phase in state.phases)
    return "training" if state.steps or (has_trainers and not has_phases) else "starting"


def _submission(run: Path) -> dict[str, Any]:
    try:
        return read_submission(run) or {}
    except (OSError, ValueError):
        return {}


def _last_job(run: Path) -> dict[str, Any] | None:
    try:
        return last_job(run) if (run / JOBS).exists() else None
    except (OSError, ValueError):
        return None


def _state_by_ends(run: Path, attempt: int, *, tail_bytes: int = TAIL_BYTES) -> RunState:
    """The state after the first events of an attempt and the last ones, among which is a step if there is one near."""
    path, state = events_path(run, attempt), RunState()
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        size = path.stat().st_size
        last = tail(path, tail_bytes) if tail_bytes else b""
    except OSError:
        return state
    lines = last.splitlines()
    if len(last) < size:
        lines = [*head.splitlines()[:HEAD_LINES], *lines]
    for line in lines:
        # A line may be cut off, at the edge of what was read or by the end of its writer.
        if (event := parse_event(line)) is not None:
            apply_event(state, event)
    if not state.steps and 0 < tail_bytes < min(size, LONG_TAIL_BYTES):
        return _state_by_ends(run, attempt, tail_bytes=LONG_TAIL_BYTES)
    return state

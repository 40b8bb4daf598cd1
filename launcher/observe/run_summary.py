"""What a run has come to, from the ends of its event log: a thousand runs are told within a second."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.common.run_dir import EVENTS, JOBS, attempt_dir, last_job, read_submission

HEAD_BYTES = 8 << 10
TAIL_BYTES = 16 << 10
LONG_TAIL_BYTES = 512 << 10
"""Read once more if the short tail holds no step: thousands of engines may have ended after the last one."""

AVERAGED_STEPS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A run as its own files tell; what they do not say is None. Times are unix seconds."""

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
    last_event: float | None


def summarize(run: Path) -> RunSummary:
    """Reads the head and the tail of the newest attempt's log. Files may be missing or half written."""
    submission = _submission(run)
    attempt = newest_attempt(run)
    head = list(_head(events_of(run, attempt))) if attempt is not None else []
    tail = _end(events_of(run, attempt)) if attempt is not None else []
    began = next((event for event in head if event.get("event") == "attempt"), {})
    steps = _steps(tail)
    if not steps and attempt is not None and attempt > 1:
        # What the attempt before had reached, until this one has a step of its own.
        steps = _steps(_end(events_of(run, attempt - 1)))
    rewards = [event["reward"] for event in steps[-AVERAGED_STEPS:] if isinstance(event.get("reward"), int | float)]
    finished = next((event for event in reversed(tail) if event.get("event") == "finished"), None)
    job = _last_job(run)
    return RunSummary(
        path=run,
        submitted=float(submission.get("time") or run.stat().st_mtime),
        cluster=submission.get("cluster"),
        job=job,
        job_id=_job_id(job, began),
        attempt=attempt,
        nodes=began.get("nodes") or submission.get("nodes"),
        step=steps[-1].get("step") if steps else None,
        steps=steps[-1].get("steps") if steps else None,
        reward=sum(rewards) / len(rewards) if rewards else None,
        phase=_phase(attempt, tail),
        outcome=str(finished.get("outcome") or "completed") if finished is not None else None,
        last_event=max((float(event["time"]) for event in tail[-1:] if "time" in event), default=None),
    )


def job_id_of(run: Path) -> str | None:
    """The SLURM job of a run; None for a local one, or one that no cluster ever had."""
    job = _last_job(run)
    if job is not None and job.get("cluster") == "local":
        return None
    attempt = newest_attempt(run)
    head = list(_head(events_of(run, attempt))) if attempt is not None else []
    return _job_id(job, next((event for event in head if event.get("event") == "attempt"), {}))


def events_of(run: Path, attempt: int) -> Path:
    """An attempt's event log."""
    return attempt_dir(run, attempt) / EVENTS


def newest_attempt(run: Path) -> int | None:
    """The newest attempt that has a directory."""
    try:
        names = os.listdir(run / "attempts")  # noqa: PTH208  (names are enough)
        return max((int(name) for name in names if name.isdecimal()), default=None)
    except OSError:
        return None


def _job_id(job: dict[str, Any] | None, began: dict[str, Any]) -> str | None:
    """The newer of what was submitted from here and of what ran: a script can also be submitted by hand."""
    submitted, ran = (job or {}).get("job_id"), began.get("job_id")
    if submitted is None or ran is None:
        return submitted or ran
    return str(ran if float(began.get("time", 0)) > float((job or {}).get("time", 0)) else submitted)


def _phase(attempt: int | None, tail: list[dict[str, Any]]) -> str | None:
    if attempt is None:
        return None
    if any(event.get("event") == "draining" for event in tail):
        return "draining"
    trainers = {event.get("event") for event in tail if _is_of_trainer(event)}
    # A trainer of one's own need not tell its steps, or its phases; then all there is to know is that it runs.
    return "training" if _steps(tail) or trainers == {"process"} else "starting"


def _is_of_trainer(event: dict[str, Any]) -> bool:
    return str(event.get("name") or event.get("who") or "").startswith("trainer-")


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


def _end(path: Path) -> list[dict[str, Any]]:
    """The last events; with a step among them if a longer look finds one."""
    tail = list(_tail(path, TAIL_BYTES))
    if not _steps(tail) and path.exists() and path.stat().st_size > TAIL_BYTES:
        tail = list(_tail(path, LONG_TAIL_BYTES))
    return tail


def _steps(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event.get("event") == "step"]


def _head(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            data = file.read(HEAD_BYTES)
    except OSError:
        return
    yield from _events(data.splitlines()[:8])


def _tail(path: Path, size: int) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - size, 0))
            data = file.read()
    except OSError:
        return
    lines = data.splitlines()
    yield from _events(lines if end <= size else lines[1:])


def _events(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # cut off, at the edge of what was read or by the end of its writer
        if isinstance(event, dict):
            yield event

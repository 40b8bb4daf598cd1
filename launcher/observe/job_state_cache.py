"""The last known state of a run's job, in its directory: for when SLURM does not answer, or has forgotten it."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.common.run_dir import write_atomically
from launcher.slurm.states import JobState

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


def read(run: Path, job_id: str, attempt: int | None) -> CachedJobState | None:
    """The cached state of this job; None if nothing is, or if the run has gone on since."""
    try:
        data = json.loads((run / JOB_STATE).read_text(encoding="utf-8"))
        state = JobState(**data["state"]) if data["state"] is not None else None
        cached = CachedJobState(job_id=data["job_id"], attempt=data["attempt"], at=float(data["at"]), state=state)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return cached if cached.job_id == job_id and cached.attempt == attempt else None


def write(run: Path, job_id: str, attempt: int | None, state: JobState | None) -> None:
    """Keeps an answer."""
    cached = CachedJobState(job_id=job_id, attempt=attempt, at=time.time(), state=state)
    # A run of somebody else can be looked at, too; then nothing is kept.
    with contextlib.suppress(OSError):
        write_atomically(run / JOB_STATE, asdict(cached))

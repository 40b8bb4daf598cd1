"""The last that was known of a run's job, in its directory: for when SLURM does not answer, or has forgotten it."""

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
class Known:
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


def read(run: Path, job_id: str, attempt: int | None) -> Known | None:
    """What is known of this job; None if nothing is, or if the run has gone on since."""
    try:
        data = json.loads((run / JOB_STATE).read_text(encoding="utf-8"))
        state = JobState(**data["state"]) if data["state"] is not None else None
        known = Known(job_id=data["job_id"], attempt=data["attempt"], at=float(data["at"]), state=state)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known if known.job_id == job_id and known.attempt == attempt else None


def write(run: Path, job_id: str, attempt: int | None, state: JobState | None) -> None:
    """Keeps an answer."""
    known = Known(job_id=job_id, attempt=attempt, at=time.time(), state=state)
    # A run of somebody else can be looked at, too; then nothing is kept.
    with contextlib.suppress(OSError):
        write_atomically(run / JOB_STATE, asdict(known))

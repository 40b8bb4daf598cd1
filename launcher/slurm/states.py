"""What SLURM's words mean: job states, also those of later releases; points in time and time limits."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FINAL = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
        *("PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT"),
    }
)
"""Nothing follows. If a job is requeued after one of them, ``squeue`` shows ``PENDING`` or ``REQUEUED`` at once."""

WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"})
"""It has no nodes, and will have some."""

HELD = frozenset({"REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"})
"""It waits until somebody releases it; so does a pending job whose reason holds :data:`HELD_REASON`."""

HELD_REASON = "held"
"""In ``JobHeldUser``, ``JobHeldAdmin``, ``job requeued in held state`` and ``launch failed requeued held``."""

BOOTING = frozenset({"CONFIGURING", "POWER_UP_NODE"})
"""It has nodes that are not up yet."""

ENDING = frozenset({"COMPLETING", "STAGE_OUT", "UPDATE_DB"})
"""Its script has ended, and its nodes are not free yet. A requeue may follow."""

FROZEN = frozenset({"SUSPENDED", "STOPPED"})
CANCELLED_CODE = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """One answer of SLURM about a job."""

    name: str
    """Long name of the state, such as ``RUNNING``."""

    exit_code: int = 0
    """Of the job's script, 128 + n for signal n; 0 while it runs."""

    start: float | None = None
    """When it started or, of one that waits, when SLURM expects it to, as unix seconds."""

    reason: str | None = None
    """Why it waits, in SLURM's word; None when there is no reason."""

    log: str | None = None
    """Where its batch script writes; None if SLURM did not print it."""

    @property
    def is_final(self) -> bool:
        """True once it cannot change any more. A state that is not known here may still change."""
        return self.name in FINAL

    @property
    def is_waiting(self) -> bool:
        """True while it has no nodes."""
        return self.name in WAITING

    @property
    def is_held(self) -> bool:
        """True if it waits for a person."""
        return self.name in HELD or (self.is_waiting and HELD_REASON in (self.reason or "").lower())

    def writes_below(self, directory: Path) -> bool:
        """False if the job writes its log somewhere else than below ``directory``.

        SLURM counts job ids from the beginning again after its state was lost, so an id on record may by now belong to
        another job. A job of a run writes its log into the run directory, or beside it for an element of an array.
        """
        return self.log is None or directory.resolve() in Path(self.log).resolve().parents

    @property
    def outcome(self) -> int:
        """Exit code of the command that followed the job to this end: 0 only for ``COMPLETED``."""
        if self.name == "COMPLETED":
            return 0
        return CANCELLED_CODE if self.name == "CANCELLED" else self.exit_code or 1


def combine(states: Iterable[JobState]) -> JobState:
    """One state for the parts of a job (the components of a heterogeneous one, the elements of an array).

    While a part may change, the first such part counts for the job; then the first that did not complete.
    """
    parts = list(states)
    return next(
        (part for part in parts if not part.is_final),
        next((part for part in parts if part.name != "COMPLETED"), parts[0]),
    )


def is_part_of(job_id: str, of: str) -> bool:
    """Whether ``job_id`` is ``of`` itself, an element of it (``12_3``) or a component (``12+0``)."""
    return job_id == of or job_id.startswith((f"{of}_", f"{of}+"))


NO_LIMIT = frozenset({"UNLIMITED", "INFINITE"})
"""Words for a time limit that is none."""


def parse_timestamp(text: str) -> float | None:
    """Unix seconds of ``2026-11-26T22:10:31`` (local time); None for ``N/A``, ``Unknown`` and the like."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def parse_limit(text: str) -> int | None:
    """The seconds of a time limit; None if it is none of SLURM's forms, or one of :data:`NO_LIMIT`.

    ``minutes``, ``minutes:seconds``, ``hours:minutes:seconds``, ``days-hours``, ``days-hours:minutes`` and
    ``days-hours:minutes:seconds``.
    """
    days, dash, clock = text.rpartition("-")
    fields = clock.split(":")
    if not all(field.isdecimal() for field in (*fields, days or "0")) or len(fields) > 3:
        return None
    numbers = [int(field) for field in fields]
    if dash:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds

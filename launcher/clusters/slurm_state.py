"""What SLURM says of a job, with accounting or without."""

from __future__ import annotations

import contextlib
import subprocess
import time
from dataclasses import dataclass

from launcher.clusters.base import job_environment
from launcher.errors import LauncherError

# squeue's long state names. Everything that is not final may still change, unknown names of other releases included.
FINAL = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
        *("PREEMPTED", "REVOKED", "TIMEOUT"),
    }
)
CALL_TIMEOUT_S = 30.0
CANCELLED_CODE = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """One answer of SLURM about a job."""

    name: str
    """Long name of the state, such as ``RUNNING``."""

    exit_code: int
    """Of the job's script, 128 + n for signal n; 0 while it runs."""

    @property
    def is_final(self) -> bool:
        """True once it cannot change any more."""
        return self.name in FINAL

    @property
    def outcome(self) -> int:
        """Exit code of who followed the job to this end: 0 only for ``COMPLETED``."""
        if self.name == "COMPLETED":
            return 0
        return CANCELLED_CODE if self.name == "CANCELLED" else self.exit_code or 1


def job_state(job_id: str) -> JobState | None:
    """The state of a job, or None once SLURM has forgotten it.

    ``squeue`` knows a job for a while after its end, without any accounting; ``sacct`` is asked only after that.

    Raises:
        LauncherError: the controller does not answer.
    """
    queued = _ask(["squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--Format=State:32,exit_code:32"])
    if queued.returncode == 0 and queued.stdout.strip():
        name, status = queued.stdout.split()[:2]
        return JobState(name=name, exit_code=_exit_code(int(status)))
    if queued.returncode != 0 and "Invalid job id" not in queued.stderr:
        raise LauncherError(f"`squeue` does not answer: {queued.stderr.strip()}")
    fields = ["--noheader", "--allocations", "--parsable2", f"--jobs={job_id}", "--format=State,ExitCode"]
    accounted = _ask(["sacct", *fields])
    if accounted.returncode == 0 and accounted.stdout.strip():
        state, _, code = accounted.stdout.splitlines()[0].partition("|")
        number, _, signum = code.partition(":")
        # "CANCELLED by 1000"
        return JobState(name=state.split()[0], exit_code=128 + int(signum) if int(signum) else int(number))
    return None


class StateWatch:
    """Asks for one job's state, but not more often than every ``interval_s``, however often it is asked itself."""

    def __init__(self, job_id: str, interval_s: float = 2.0) -> None:
        self._job_id = job_id
        self._interval_s = interval_s
        self._asked = float("-inf")
        self._state: JobState | None = JobState(name="PENDING", exit_code=0)

    @property
    def state(self) -> JobState | None:
        """The last known state, None if SLURM has forgotten the job; unchanged while the controller is away."""
        if self.is_open and time.monotonic() - self._asked >= self._interval_s:
            self._asked = time.monotonic()
            with contextlib.suppress(LauncherError):
                self._state = job_state(self._job_id)
        return self._state

    @property
    def is_open(self) -> bool:
        """True while the last known state may change."""
        return self._state is not None and not self._state.is_final


def _exit_code(status: int) -> int:
    """From the status that ``wait(2)`` gives."""
    signum = status & 0x7F
    return 128 + signum if signum else status >> 8


def _ask(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=CALL_TIMEOUT_S, env=job_environment(), check=False
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: not found")
    except subprocess.TimeoutExpired as error:
        raise LauncherError(f"`{command[0]}` did not answer within {CALL_TIMEOUT_S:g} s.") from error

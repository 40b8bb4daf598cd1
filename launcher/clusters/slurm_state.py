"""What SLURM says of a job, with accounting or without."""

from __future__ import annotations

import subprocess
import time

from launcher.errors import LauncherError

# squeue's long state names (%T). Everything that is not final may still change, unknown names of other releases included.
FINAL = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT".split()
)
CALL_TIMEOUT_S = 30.0


def job_state(job_id: str) -> str | None:
    """The state of a job by its long name (``RUNNING``), or None once SLURM has forgotten it.

    ``squeue`` knows a job for a while after its end, without any accounting; ``sacct`` is asked only after that.

    Raises:
        LauncherError: the controller does not answer.
    """
    queued = _ask(["squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T"])
    if queued.returncode == 0 and queued.stdout.strip():
        return queued.stdout.split()[0]
    if queued.returncode != 0 and "Invalid job id" not in queued.stderr:
        raise LauncherError(f"`squeue` does not answer: {queued.stderr.strip()}")
    accounted = _ask(["sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={job_id}", "--format=State"])
    if accounted.returncode == 0 and accounted.stdout.strip():
        return accounted.stdout.split()[0]
    return None


class StateWatch:
    """Asks for one job's state, but not more often than every ``interval_s``, however often it is asked itself."""

    def __init__(self, job_id: str, interval_s: float = 2.0) -> None:
        self._job_id = job_id
        self._interval_s = interval_s
        self._asked = float("-inf")
        self._state: str | None = "PENDING"

    @property
    def state(self) -> str | None:
        """The last known state; a controller that is away for a while does not change it."""
        if time.monotonic() - self._asked >= self._interval_s and self._state is not None and not self.is_final:
            self._asked = time.monotonic()
            try:
                self._state = job_state(self._job_id)
            except LauncherError:
                return self._state
        return self._state

    @property
    def is_final(self) -> bool:
        """True once the state cannot change any more."""
        return self._state is None or self._state in FINAL


def _ask(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=CALL_TIMEOUT_S, check=False)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: not found")
    except subprocess.TimeoutExpired as error:
        raise LauncherError(f"`{command[0]}` did not answer within {CALL_TIMEOUT_S:g} s.") from error

"""The states of many jobs at once, from one ``squeue`` and one ``sacct``; and one job's state from time to time."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Collection, Iterator

from launcher.slurm.client import CALL_TIMEOUT_S, NO_SUCH_JOB, ControllerAway, call, columns
from launcher.slurm.jobs import JobId, by_cluster, cluster_option
from launcher.slurm.states import JobState, combine, is_part_of, parse_timestamp

# Fixed widths: a reason may hold any character, so nothing can separate the fields.
FIELDS = {"JobArrayID": 40, "State": 24, "exit_code": 12, "StartTime": 24, "Reason": 80, "STDOUT": 1024}
UNSTARTED = frozenset({"N/A", "NONE", "UNKNOWN", ""})


def job_states(job_ids: Collection[str], *, timeout_s: float = CALL_TIMEOUT_S) -> dict[str, JobState]:
    """The states of jobs, array elements (``12_3``) or heterogeneous jobs; those that SLURM has forgotten are missing.

    ``squeue`` knows a job for a while after its end, without any accounting; ``sacct`` is called only after that, and
    where it is off or forbidden the answer simply stays shorter.

    Raises:
        ControllerAway: the controller does not answer within ``timeout_s``.
    """
    found: dict[str, JobState] = {}
    for cluster, numbers in by_cluster(job_ids).items():
        known = _match(numbers, _squeue(numbers, cluster, timeout_s))
        if forgotten := [number for number in numbers if number not in known]:
            known |= _sacct(forgotten, cluster, timeout_s)
        found |= {str(JobId(number, cluster)): state for number, state in known.items()}
    return found


def job_state(job_id: str, *, timeout_s: float = CALL_TIMEOUT_S) -> JobState | None:
    """The state of one job, or None once SLURM has forgotten it.

    Raises:
        ControllerAway: the controller does not answer.
    """
    return job_states([job_id], timeout_s=timeout_s).get(job_id)


def accounted_states(job_ids: Collection[str], *, timeout_s: float = CALL_TIMEOUT_S) -> dict[str, JobState]:
    """How jobs ended, as accounting knows; nothing where there is none, or where it is not readable."""
    return {
        str(JobId(number, cluster)): state
        for cluster, numbers in by_cluster(job_ids).items()
        for number, state in _sacct(numbers, cluster, timeout_s).items()
    }


def _sacct(numbers: Collection[str], cluster: str | None, timeout_s: float) -> dict[str, JobState]:
    fields = ["--noheader", "--allocations", "--parsable2", f"--jobs={','.join(numbers)}", *cluster_option(cluster)]
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = call(["sacct", *fields, "--format=JobID,State,ExitCode,Start"], timeout_s)
        if done.returncode == 0:
            rows = [_accounted(line.split("|")) for line in done.stdout.splitlines() if line.count("|") == 3]
            # The controller has forgotten the job, so it has ended; a record that is still RUNNING was never closed.
            return _match(numbers, [(job_id, state) for job_id, state in rows if state.is_final])
    return {}


def _squeue(numbers: Collection[str], cluster: str | None, timeout_s: float) -> list[tuple[str, JobState]]:
    fields = ",".join(f"{name}:{width}" for name, width in FIELDS.items())
    # --array: else the waiting elements of an array share one line.
    options = ["--noheader", "--states=all", "--array", f"--jobs={','.join(numbers)}", *cluster_option(cluster)]
    try:
        done = call(["squeue", *options, f"--Format={fields}"], timeout_s)
    except subprocess.TimeoutExpired as error:
        raise ControllerAway(f"`squeue` did not answer within {timeout_s:g} s.") from error
    if done.returncode == 0:
        return list(_rows(done.stdout))
    if NO_SUCH_JOB in done.stderr:
        return []
    raise ControllerAway(f"`squeue` does not answer: {' '.join(done.stderr.split())}")


def _rows(text: str) -> Iterator[tuple[str, JobState]]:
    for line in text.splitlines():
        job_id, name, status, start, reason, log = columns(line, FIELDS.values())
        if name:
            code = _exit_code(status)
            why = None if reason.upper() in UNSTARTED else reason
            yield job_id, JobState(name=name, exit_code=code, start=_start(start), reason=why, log=log or None)


def _accounted(fields: list[str]) -> tuple[str, JobState]:
    job_id, name, status, start = fields
    code = _exit_code(status if ":" in status else f"{status}:0")
    # "CANCELLED by 1000"
    return job_id, JobState(name=name.split()[0], exit_code=code, start=_start(start))


def _match(job_ids: Collection[str], rows: list[tuple[str, JobState]]) -> dict[str, JobState]:
    exact = dict(rows)
    found = {job_id: exact[job_id] for job_id in job_ids if job_id in exact}
    for job_id in job_ids:
        if job_id not in found and (parts := [state for row, state in rows if is_part_of(row, job_id)]):
            found[job_id] = combine(parts)
    return found


def _exit_code(status: str) -> int:
    """128 + n for signal n. 22.05 prints what ``wait(2)`` gives, 24.11 ``CODE:SIGNAL``."""
    code, colon, signum = status.partition(":")
    if not code.isdecimal() or (colon and not signum.isdecimal()):
        return 0
    if not colon:
        code, signum = str(int(status) >> 8), str(int(status) & 0x7F)
    return 128 + int(signum) if int(signum) else int(code)


def _start(text: str) -> float | None:
    return None if text.upper() in UNSTARTED else parse_timestamp(text)


LONGEST_INTERVAL_S = 30.0
LONGEST_SILENCE_S = 60.0
"""Longest interval while the controller does not answer."""

GROWTH = 1.5


class StateWatch:
    """One job's state, queried at most once per interval.

    The interval grows while nothing changes, and faster while the controller is away; a change makes it short again.

    Args:
        interval_s: the shortest interval.
        clock: seconds that never go back.
    """

    def __init__(self, job_id: str, interval_s: float = 2.0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._job_id = job_id
        self._shortest_s = interval_s
        self._interval_s = interval_s
        self._clock = clock
        self._query_at = float("-inf")
        self._state: JobState | None = JobState(name="PENDING")
        self.problem: str | None = None
        """Why the last query had no answer; None if it had one."""

    @property
    def state(self) -> JobState | None:
        """The last known state, None if SLURM has forgotten the job; unchanged while the controller is away."""
        if self.is_open and self._clock() >= self._query_at:
            self._query()
        return self._state

    @property
    def is_open(self) -> bool:
        """True while the last known state may change."""
        return self._state is not None and not self._state.is_final

    def expect_change(self) -> None:
        """Queries often again, because the end, for example, is due."""
        self._interval_s = self._shortest_s
        self._query_at = min(self._query_at, self._clock() + self._interval_s)

    def _query(self) -> None:
        try:
            state = job_state(self._job_id)
        except ControllerAway as error:
            self.problem = str(error)
            self._interval_s = min(self._interval_s * 2, LONGEST_SILENCE_S)
        else:
            self.problem = None
            is_news = self._state is None or state is None or state.name != self._state.name
            self._interval_s = self._shortest_s if is_news else min(self._interval_s * GROWTH, LONGEST_INTERVAL_S)
            self._state = state
        self._query_at = self._clock() + self._interval_s

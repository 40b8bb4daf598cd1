"""The states of many jobs at once: from one ``squeue``, and one ``sacct`` for what that has forgotten."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Collection, Iterator

from launcher.slurm.client import CALL_TIMEOUT_S, NO_SUCH_JOB, ControllerAway, call
from launcher.slurm.jobs import JobId, by_cluster, cluster_option
from launcher.slurm.states import JobState, combine, is_part_of
from launcher.slurm.times import parse_timestamp

# Fixed widths: a reason may hold any character, so nothing can separate the fields.
FIELDS = {"JobArrayID": 40, "State": 24, "exit_code": 12, "StartTime": 24, "Reason": 80, "STDOUT": 1024}
UNSTARTED = frozenset({"N/A", "NONE", "UNKNOWN", ""})


def job_states(job_ids: Collection[str], *, timeout_s: float = CALL_TIMEOUT_S) -> dict[str, JobState]:
    """The states of jobs, array elements (``12_3``) or heterogeneous jobs; those that SLURM has forgotten are missing.

    ``squeue`` knows a job for a while after its end, without any accounting; ``sacct`` is asked only after that, and
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
    """How jobs ended, as accounting knows; nothing where there is none, or where it is not ours to ask."""
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
            # The controller has forgotten the job, so it has ended; a record that still says RUNNING was never closed.
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
        values, begin = [], 0
        for width in FIELDS.values():
            values.append(line[begin : begin + width].strip())
            begin += width
        job_id, name, status, start, reason, log = values
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

"""Ends runs, and waits until nothing of them is left."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launcher.common.errors import LauncherError
from launcher.common.procfs import Identity, living
from launcher.observe.run_status import RunStatus, guards_of
from launcher.slurm.client import ControllerAway
from launcher.slurm.jobs import cancel_jobs
from launcher.slurm.query import job_states
from launcher.slurm.states import JobState

LOCAL_POLL_S = 0.1
SHORTEST_POLL_S, LONGEST_POLL_S = 0.5, 5.0
SCANCEL_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """What became of one run."""

    name: str
    was: str
    """State before."""

    ended: tuple[str, ...]
    """What was ended, in words; empty if nothing had to be."""


def cancel(runs: Sequence[RunStatus], timeout_s: float, tell: Callable[[str], None]) -> list[Cancelled]:
    """Asks each run to end, as Ctrl-C would, and returns when all have; those that are over are left alone.

    Args:
        tell: called with a line whenever there is something to wait for.

    Raises:
        LauncherError: a run cannot be reached from here, or has not ended within ``timeout_s``.
    """
    going = [run for run in runs if not run.is_over]
    deadline = time.monotonic() + timeout_s
    for run in going:
        if run.summary.job_id is None:
            _check_host(run)
    jobs = [run.summary.job_id for run in going if run.summary.job_id is not None]
    guards = {run.summary.path: living(guards_of(run.summary.job or {})) for run in going if run.summary.job_id is None}
    if jobs:
        cancel_jobs(jobs, timeout_s=SCANCEL_TIMEOUT_S)
    # SIGTERM is what a guard passes on to its agent, which ends its workers in order and says so to the others.
    hit = {path: [guard for guard in found if guard.send(signal.SIGTERM)] for path, found in guards.items()}
    if going:
        tell(f"waiting for {', '.join(run.summary.path.name for run in going)} to end (at most {timeout_s:g} s)")
    left = [guard for found in hit.values() for guard in found]
    _wait_local(left, deadline, timeout_s)
    ends = _wait_jobs(jobs, deadline, timeout_s)
    return [_result(run, hit.get(run.summary.path, []), ends) for run in runs]


def _result(run: RunStatus, guards: Sequence[Identity], ends: dict[str, JobState | None]) -> Cancelled:
    job_id = run.summary.job_id
    ended: tuple[str, ...] = ()
    if not run.is_over and job_id is not None:
        state = ends.get(job_id)
        ended = (f"job {job_id}: {state.name if state is not None else 'no longer known to SLURM'}",)
    elif guards:
        pids = ", ".join(str(guard.pid) for guard in guards)
        ended = (f"{len(guards)} {'node' if len(guards) == 1 else 'nodes'} on this machine (guards {pids})",)
    return Cancelled(name=run.summary.path.name, was=run.word, ended=ended)


def _check_host(run: RunStatus) -> None:
    job = run.summary.job
    if job is None:
        raise LauncherError(
            f"Nothing is known of what runs {run.summary.path.name}: it was not started from here."
            " HINT: end it where it was started."
        )
    if job.get("host") != socket.gethostname():
        raise LauncherError(f"{run.summary.path.name} runs on {job.get('host')}. HINT: run this command there.")


def _wait_local(guards: Sequence[Identity], deadline: float, timeout_s: float) -> None:
    while left := living(guards):
        if time.monotonic() > deadline:
            pids = ", ".join(str(guard.pid) for guard in left)
            raise LauncherError(f"Nodes of the run have not ended after {timeout_s:g} s: processes {pids}.")
        time.sleep(LOCAL_POLL_S)


def _wait_jobs(jobs: Sequence[str], deadline: float, timeout_s: float) -> dict[str, JobState | None]:
    """The last state of each job; None for one that SLURM has forgotten."""
    ends: dict[str, JobState | None] = {}
    interval, said = SHORTEST_POLL_S, "not asked yet"
    while left := [job for job in jobs if job not in ends]:
        try:
            states = job_states(left)
        except ControllerAway as error:
            said = str(error)  # it was asked to end them; until the deadline it may come back and tell
        else:
            ends |= {job: states.get(job) for job in left if job not in states or states[job].is_final}
            said = ", ".join(f"job {job} is {states[job].name}" for job in left if job not in ends)
        if len(ends) == len(jobs):
            break
        if time.monotonic() > deadline:
            raise LauncherError(f"Not ended after {timeout_s:g} s: {said}. HINT: `squeue --job ID` says more.")
        time.sleep(interval)
        interval = min(interval * 1.5, LONGEST_POLL_S)
    return ends

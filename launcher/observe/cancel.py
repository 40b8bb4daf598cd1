"""Ends runs, and waits until nothing of them is left."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launcher.common.errors import LauncherError
from launcher.common.procfs import Identity, living
from launcher.observe.run_status import RunStatus, shims_of
from launcher.slurm.client import ControllerAway
from launcher.slurm.jobs import cancel_jobs
from launcher.slurm.query import job_states
from launcher.slurm.states import JobState

LOCAL_POLL_S = 0.1
SHORTEST_POLL_S, LONGEST_POLL_S = 0.5, 5.0
SCANCEL_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """The result for one run."""

    name: str
    was: str
    """State before."""

    ended: tuple[str, ...]
    """What was ended, as text; empty if nothing had to be."""


def cancel(runs: Sequence[RunStatus], timeout_s: float, report: Callable[[str], None]) -> list[Cancelled]:
    """Ends each run as Ctrl-C would, and returns when all have ended; runs that are over are left alone.

    Args:
        report: called with a line whenever there is something to wait for.

    Raises:
        LauncherError: a run cannot be reached from here, or has not ended within ``timeout_s``.
    """
    going = [run for run in runs if not run.is_over]
    deadline = time.monotonic() + timeout_s
    for run in going:
        if run.summary.job_id is None:
            _check_host(run)
    jobs = [run.summary.job_id for run in going if run.summary.job_id is not None]
    shims = {run.summary.path: living(shims_of(run.summary.job or {})) for run in going if run.summary.job_id is None}
    if jobs:
        cancel_jobs(jobs, timeout_s=SCANCEL_TIMEOUT_S)
    # A shim forwards SIGTERM to its agent, which ends its workers in order and reports it to node 0.
    signalled = {path: [shim for shim in found if shim.send(signal.SIGTERM)] for path, found in shims.items()}
    if going:
        report(f"waiting for {', '.join(run.summary.path.name for run in going)} to end (at most {timeout_s:g} s)")
    left = [shim for found in signalled.values() for shim in found]
    _wait_local(left, deadline, timeout_s)
    ends = _wait_jobs(jobs, deadline, timeout_s)
    return [_result(run, signalled.get(run.summary.path, []), ends) for run in runs]


def _result(run: RunStatus, shims: Sequence[Identity], ends: dict[str, JobState | None]) -> Cancelled:
    job_id = run.summary.job_id
    ended: tuple[str, ...] = ()
    if not run.is_over and job_id is not None:
        state = ends.get(job_id)
        ended = (f"job {job_id}: {state.name if state is not None else 'no longer known to SLURM'}",)
    elif shims:
        pids = ", ".join(str(shim.pid) for shim in shims)
        ended = (f"{len(shims)} {'node' if len(shims) == 1 else 'nodes'} on this machine (shims {pids})",)
    return Cancelled(name=run.summary.path.name, was=run.state, ended=ended)


def _check_host(run: RunStatus) -> None:
    job = run.summary.job
    if job is None:
        raise LauncherError(
            f"No process is known that runs {run.summary.path.name}: it was not started from here."
            " HINT: end it where it was started."
        )
    if job.get("host") != socket.gethostname():
        raise LauncherError(f"{run.summary.path.name} runs on {job.get('host')}. HINT: run this command there.")


def _wait_local(shims: Sequence[Identity], deadline: float, timeout_s: float) -> None:
    while left := living(shims):
        if time.monotonic() > deadline:
            pids = ", ".join(str(shim.pid) for shim in left)
            raise LauncherError(f"Nodes of the run have not ended after {timeout_s:g} s: processes {pids}.")
        time.sleep(LOCAL_POLL_S)


def _wait_jobs(jobs: Sequence[str], deadline: float, timeout_s: float) -> dict[str, JobState | None]:
    """The last state of each job; None for one that SLURM has forgotten."""
    ends: dict[str, JobState | None] = {}
    interval, last = SHORTEST_POLL_S, "not known yet"
    while left := [job for job in jobs if job not in ends]:
        try:
            states = job_states(left)
        except ControllerAway as error:
            last = str(error)  # it has received the request; until the deadline it may come back
        else:
            ends |= {job: states.get(job) for job in left if job not in states or states[job].is_final}
            last = ", ".join(f"job {job} is {states[job].name}" for job in left if job not in ends)
        if len(ends) == len(jobs):
            break
        if time.monotonic() > deadline:
            raise LauncherError(f"Not ended after {timeout_s:g} s: {last}. HINT: `squeue --job ID` says more.")
        time.sleep(interval)
        interval = min(interval * 1.5, LONGEST_POLL_S)
    return ends

"""Why this process got a signal: what SLURM is about to do with the job that it belongs to.

A job gets the same SIGTERM when it is cancelled, preempted, requeued by an administrator, or out of time. The
difference is in ``scontrol show job`` by the time the signal arrives (seen with SLURM 22.05):

- ``Restarts`` has risen above the job's own ``SLURM_RESTART_COUNT``: SLURM queues the job again in any case, and
  SIGKILL follows ``KillWait`` later. That is a preemption if SIGUSR2 came along (``preempt_send_user_signal``);
  without that option a preemption and ``scontrol requeue`` look alike.
- ``PreemptTime`` is set while the job runs: it will be preempted after the partition's ``GraceTime``. One that ends
  before is not queued again by SLURM, so it must do so itself.
- ``Reason=TimeLimit``, or ``EndTime`` is near: the time limit. SLURM does not queue the job again.
- None of it: somebody sent the signal, with ``scancel`` or otherwise.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from launcher.slurm.client import CALL_TIMEOUT_S, call, run_outside
from launcher.slurm.nodelist import expand_nodelist
from launcher.slurm.states import parse_timestamp

KILLED_LOOKUP_S = 1.5
KILLED = frozenset({-signal.SIGTERM, -signal.SIGKILL, 128 + signal.SIGTERM, 128 + signal.SIGKILL})
"""Exit codes of a command that SLURM ended together with the job, here or in the job script's shell."""

EARLY_S = 75.0
"""SLURM sends the signal before a time limit up to a minute earlier than requested."""

UNSET = frozenset({"", "None", "N/A", "Unknown", "(null)"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalCause:
    """What SLURM does with this job at the moment of a signal."""

    is_requeued: bool = False
    """SLURM has already queued the job again, by itself."""

    is_preempted: bool = False
    """It will be queued again when its time of grace is over."""

    is_out_of_time: bool = False
    is_ending: bool = False
    """SLURM is ending the job's processes; without one of the above: it was cancelled."""


def signal_cause(
    signal_s: int, environ: Mapping[str, str] = os.environ, *, timeout_s: float = CALL_TIMEOUT_S
) -> SignalCause | None:
    """From ``scontrol show job``; None if that fails, or takes longer than ``timeout_s``.

    Args:
        signal_s: seconds before the time limit at which SLURM was to send SIGUSR2.
    """
    line = _show_job(environ, timeout_s)
    if line is None:
        return None
    return read_signal_cause(line, int(environ.get("SLURM_RESTART_COUNT", "0")), signal_s, time.time())


def read_signal_cause(line: str, restarts: int, signal_s: int, now: float) -> SignalCause:
    """From a line of ``scontrol show job --oneliner``.

    Args:
        restarts: how often the job had been queued again when this attempt of it began.
        now: seconds since the epoch.
    """
    values = _values(line)
    state, end = values.get("JobState", ""), parse_timestamp(values.get("EndTime", ""))
    is_running = state in ("RUNNING", "SUSPENDED")
    is_requeued = int(values.get("Restarts", "0")) > restarts
    is_preempted = is_running and values.get("PreemptTime", "") not in UNSET
    is_near_end = is_running and not is_preempted and end is not None and end - now <= signal_s + EARLY_S
    return SignalCause(
        is_requeued=is_requeued,
        is_preempted=is_preempted,
        is_out_of_time=not is_requeued and (values.get("Reason") == "TimeLimit" or is_near_end),
        is_ending=not is_running,
    )


def node_removed_from_job(hostname: str, environ: Mapping[str, str] = os.environ) -> bool | None:
    """Whether SLURM has taken a node, which was lost, out of this job; None if this attempt of the job is over.

    False if ``scontrol`` fails.
    """
    line = _show_job(environ, CALL_TIMEOUT_S)
    return False if line is None else read_node_removed(line, hostname, int(environ.get("SLURM_RESTART_COUNT", "0")))


def read_node_removed(line: str, hostname: str, restarts: int) -> bool | None:
    """:func:`node_removed_from_job` from a line of ``scontrol show job --oneliner``."""
    values = _values(line)
    nodelist = values.get("NodeList", "")
    if int(values.get("Restarts", "0")) > restarts or nodelist in UNSET:
        return None
    return hostname not in expand_nodelist(nodelist)


def requeue(environ: Mapping[str, str] = os.environ) -> str | None:
    """Queues this process's own job again; SLURM ends its processes soon after.

    Returns:
        None if it worked, SLURM's message otherwise.
    """
    job_id = environ.get("SLURM_ARRAY_JOB_ID", "")
    task = environ.get("SLURM_ARRAY_TASK_ID", "")
    job_id = f"{job_id}_{task}" if job_id and task else environ.get("SLURM_HET_JOB_ID") or environ["SLURM_JOB_ID"]
    was_killed = False
    try:
        done = _run("requeue", job_id, CALL_TIMEOUT_S, environ)
    except subprocess.TimeoutExpired:
        problem = f"`scontrol requeue` did not answer within {CALL_TIMEOUT_S:g} s"
    else:
        if done.returncode == 0:
            return None
        was_killed = done.returncode in KILLED
        problem = done.stderr.strip() or f"exit code {done.returncode}"
    # `scontrol` may be one of the processes that SLURM ends because of this very call; so may the job script be, which
    # would have to look it up for a node inside an image.
    cause = signal_cause(0, environ, timeout_s=KILLED_LOOKUP_S if was_killed else CALL_TIMEOUT_S)
    is_requeued = was_killed if cause is None else cause.is_requeued
    return None if is_requeued else problem


def cancel_own_job(environ: Mapping[str, str] = os.environ) -> None:
    """Cancels this process's own job: the only way to end one whose batch script SLURM has lost."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        _run("cancel", environ["SLURM_JOB_ID"], CALL_TIMEOUT_S, environ)


class Reach(Enum):
    """How this process reaches SLURM's controller."""

    HERE = auto()
    JOB_SCRIPT = auto()
    """Through the job script, which runs outside of this process's image."""

    LATE = auto()
    """Not in time; it may be busy."""

    NOT = auto()


def reach_slurm(timeout_s: float, environ: Mapping[str, str] = os.environ) -> Reach:
    """Tries to look this process's job up."""
    job_id = environ.get("SLURM_JOB_ID", "")
    try:
        if call([*COMMANDS["show"], job_id], timeout_s).returncode == 0:
            return Reach.HERE
        outside = run_outside("show", job_id, timeout_s, environ)
    except subprocess.TimeoutExpired:
        return Reach.LATE
    return Reach.JOB_SCRIPT if outside is not None and outside.returncode == 0 else Reach.NOT


COMMANDS = {
    "show": ("scontrol", "show", "job", "--oneliner"),
    "requeue": ("scontrol", "requeue"),
    "cancel": ("scancel",),
}
"""What a node needs of SLURM about its own job; the job script knows the same names."""


def _run(verb: str, job_id: str, timeout_s: float, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs one of SLURM's commands here or, where they are missing or do not work, through the job script.

    Raises:
        subprocess.TimeoutExpired: no answer in time.
    """
    done = call([*COMMANDS[verb], job_id], timeout_s)
    if done.returncode == 0:
        return done
    outside = run_outside(verb, job_id, timeout_s, environ)
    return done if outside is None else outside


def _show_job(environ: Mapping[str, str], timeout_s: float) -> str | None:
    """The line of ``scontrol show job --oneliner`` about this process's job; None if there is no answer."""
    try:
        done = _run("show", environ.get("SLURM_JOB_ID", ""), timeout_s, environ)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.splitlines()[0] if done.returncode == 0 and "JobId=" in done.stdout else None


def _values(line: str) -> dict[str, str]:
    return dict(re.findall(r"(?:^|\s)(\w+)=(\S*)", line))

"""How the run ends: its record, the requeue, and the exit code for the job script."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from launcher.common.env import LAUNCHER_EXIT_FILE
from launcher.common.errors import STOPPED, ProcessFailure
from launcher.common.jsonio import write_text
from launcher.common.run_dir import End, ends, record_end
from launcher.common.text import command_line
from launcher.config.schema import Config, SlurmClusterConfig
from launcher.control.client import ControlClient
from launcher.control.model import Phase, StopReason
from launcher.control.protocol import EventRequest
from launcher.events.schema import AttemptFinished, FailureReported, JobRequeued
from launcher.node.context import NodeContext, NodeEnvironment
from launcher.node.signal_policy import end_of
from launcher.slurm.job_signals import cancel_own_job, node_removed_from_job, requeue, signal_cause

logger = logging.getLogger(__name__)


def write_exit_code(code: int) -> None:
    """Called by node 0 as the last thing it does: from now on the job script knows the run's exit code.

    On a full disk it cannot be written; then the job script takes the exit code of ``srun``.
    """
    if name := os.environ.get(LAUNCHER_EXIT_FILE):
        with contextlib.suppress(OSError):
            write_text(Path(name), f"{code}\n")


def run_has_exit_code() -> bool:
    """Whether node 0 has written the run's exit code."""
    name = os.environ.get(LAUNCHER_EXIT_FILE)
    return name is not None and Path(name).exists()


POLL_S = 0.1
GONE_TIMEOUT_S = 10.0
CANCELLED_CODE = 130
LOOKUP_TIMEOUT_S = 30.0
"""Longest wait for SLURM's answer whether it has queued the job again by itself."""


_LIMITS: tuple[tuple[frozenset[End], str, str], ...] = (
    (frozenset({End.PREEMPTED}), "was preempted", "max_preemptions"),
    (frozenset({End.TIMED_OUT}), "ran out of time", "max_timeouts"),
    (frozenset({End.FAILED, End.LOST}), "failed, or ended without a record,", "max_failures"),
)
"""How attempts may end only so often: in words, and the setting of `restart`. Other ends are not limited."""


def passed_limit(config: Config, counted: Counter[End]) -> str | None:
    """The limit that a job has passed, as a sentence; None if it has passed none."""
    for ends_, words, setting in _LIMITS:
        count, most = sum(counted[end] for end in ends_), getattr(config.restart, setting)
        if count > most:
            return f"The job {words} {count} times, more than `restart.{setting}` ({most})."
    return None


def check_limits(config: Config, run_dir: Path, node: NodeEnvironment) -> None:
    """For a job that SLURM has queued again by itself.

    Raises:
        ProcessFailure: it has done so too often.
    """
    words = passed_limit(config, ends(run_dir, node.attempt, node.job_id))
    if words is not None:
        record_end(run_dir, node.attempt, End.FAILED)
        raise ProcessFailure(
            f"{words} HINT: `{command_line('resume', run_dir)}` continues the run, and counts from zero."
        )


def finalize(
    context: NodeContext,
    client: ControlClient,
    node: NodeEnvironment,
    began: float,
    stop_reason: Callable[[], StopReason | None],
) -> int:
    """Waits until the others have left, records how the attempt ended, and requeues the job if that is due.

    Args:
        stop_reason: the best known reason of a stop; SLURM may have given it only after the stop had begun.

    Returns:
        Node 0's exit code, which is the run's.
    """
    deadline = time.monotonic() + GONE_TIMEOUT_S
    reply = client.status()
    while not reply.all_nodes_left and time.monotonic() < deadline:
        time.sleep(POLL_S)
        reply = client.status()
    phase, failure = reply.phase, reply.failure
    end = _end(phase, stop_reason() or reply.stop_reason)
    record_end(context.run_dir, context.attempt, end)
    outcome, problem = _outcome(phase), None
    if phase is Phase.STOPPED or (failure is not None and failure.requeue):
        problem, end = requeue_job(context.config, context.run_dir, node, end)
        if problem is None:
            outcome = "requeued"
            client.call(EventRequest.of(JobRequeued(reason=end.value, attempt=context.attempt + 1)))
    finished = AttemptFinished(outcome=outcome, seconds=time.monotonic() - began, reason=problem)
    client.call(EventRequest.of(finished))
    if outcome != "requeued" and not node.is_local and node_removed_from_job(node.hostname):
        # SLURM believes that this node, and the job script with it, is lost, and will not notice that script's end.
        logger.warning(
            "SLURM has taken this node out of the job; the job is cancelled, so that its nodes are given back"
        )
        cancel_own_job()
    return _exit_code(outcome, failure)


def _end(phase: Phase, reason: StopReason | None) -> End:
    if phase is Phase.STOPPED:
        return End.STOPPED if reason is None else end_of(reason)
    known = {Phase.FINISHED: End.COMPLETED, Phase.CANCELLED: End.CANCELLED}
    return known.get(phase, End.FAILED)


def _outcome(phase: Phase) -> str:
    known = {Phase.FINISHED: "completed", Phase.CANCELLED: "cancelled", Phase.STOPPED: "stopped"}
    return known.get(phase, "failed")


def _exit_code(outcome: str, failure: FailureReported | None) -> int:
    if outcome in ("completed", "requeued"):
        return 0
    if outcome == "stopped":
        return STOPPED
    if failure is not None and failure.launcher_exit_code is not None:
        return failure.launcher_exit_code
    return CANCELLED_CODE if outcome == "cancelled" else ProcessFailure.exit_code


def requeue_job(config: Config, run_dir: Path, node: NodeEnvironment, end: End) -> tuple[str | None, End]:
    """Sees to it that SLURM starts the job again.

    Args:
        end: how this attempt, which is not counted yet, ends.

    Returns:
        None if SLURM will start it, else why not; and how the attempt ended, which SLURM may know better.
    """
    if node.is_local:
        return "nothing queues a run of this machine again", end
    now = signal_cause(0, timeout_s=LOOKUP_TIMEOUT_S)
    if now is not None and now.is_requeued:
        if end is End.STOPPED:
            # The stop was the beginning of a preemption for which SLURM had no explanation at first.
            end = End.PREEMPTED
            record_end(run_dir, node.attempt, end)
        return None, end
    if not isinstance(config.cluster, SlurmClusterConfig) or not config.cluster.requeue:
        return "`cluster.requeue` is false", end
    counted = ends(run_dir, node.attempt, node.job_id)
    counted[end] += 1
    if (words := passed_limit(config, counted)) is not None:
        return words, end
    if end is End.STOPPED:
        record_end(run_dir, node.attempt, end, is_requeued=True)
    problem = requeue()
    if problem is not None:
        logger.error("the job cannot be queued again: %s", problem)
        return f"`scontrol requeue` failed: {problem}", end
    return None, end

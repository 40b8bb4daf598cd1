"""How a node and the run end: crash report, record, requeue, and the exit code for the job script."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.common.env import LAUNCHER_EXIT_FILE
from launcher.common.errors import STOPPED, LauncherError, ProcessFailure
from launcher.common.keys import token_from_environment
from launcher.common.run_dir import CONTROL, EVENTS, End, attempt_dir, ends, record_end
from launcher.common.text import command_line
from launcher.config.schema import Config, SlurmClusterConfig
from launcher.control.client import ControlClient
from launcher.control.model import Phase, StopReason
from launcher.control.protocol import EventRequest, NodeLeftRequest, NodeLostRequest
from launcher.events.failure_kinds import FailureKind
from launcher.events.log import EventLog
from launcher.events.log_rules import EXIT_CODES
from launcher.events.schema import AttemptFinished, FailureReported, JobRequeued
from launcher.events.serialize import make_event
from launcher.node.context import NodeContext, NodeEnvironment, node_environment
from launcher.node.signal_policy import end_of
from launcher.slurm.job_signals import cancel_own_job, node_removed_from_job, requeue, signal_cause

logger = logging.getLogger(__name__)


def write_exit_code(code: int) -> None:
    """Called by node 0 as the last thing it does: from now on the job script knows the run's exit code.

    On a full disk it cannot be written; then the job script takes the exit code of ``srun``.
    """
    if name := os.environ.get(LAUNCHER_EXIT_FILE):
        path = Path(name)
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            draft.write_text(f"{code}\n", encoding="utf-8")
            draft.replace(path)


def run_has_exit_code() -> bool:
    """Whether node 0 has given its answer."""
    name = os.environ.get(LAUNCHER_EXIT_FILE)
    return name is not None and Path(name).exists()


CALL_TIMEOUT_S = 3.0


def report_failure(run_dir: Path, message: str, exit_code: int, **fields: Any) -> int:
    """Tells the run that this node is lost and gone; what follows from it, the run decides.

    Returns:
        The exit code of the node: 0 if node 0 knows, because node 0 answers for the run; ``exit_code`` otherwise.
    """
    node = node_environment()
    directory = attempt_dir(run_dir, node.attempt)
    fields.setdefault("kind", EXIT_CODES.get(exit_code, FailureKind.UNKNOWN))
    failure = {"message": message, "node_rank": node.node_rank, "hostname": node.hostname, **fields}
    if node.node_rank == 0:
        close_log(directory / EVENTS, failure, {"outcome": "failed"})
        return exit_code
    try:
        address = json.loads((directory / CONTROL).read_text(encoding="utf-8"))["control"]
        client = ControlClient(address, token_from_environment())
        report = make_event("failure", {**failure, "launcher_exit_code": exit_code})
        assert isinstance(report, FailureReported)
        client.call(NodeLostRequest(node_rank=node.node_rank, failure=report), timeout_s=CALL_TIMEOUT_S)
        client.call(NodeLeftRequest(node_rank=node.node_rank), timeout_s=CALL_TIMEOUT_S)
        client.close()
    except (OSError, LauncherError):
        # Node 0 is not there any more, or not yet. Then the exit code of this node counts.
        return exit_code
    return 0


def close_log(path: Path, failure: dict[str, Any], end: dict[str, Any], *others: dict[str, Any]) -> None:
    """Node 0's agent alone writes the event log; when it has ended without a last line, that line is added here.

    Args:
        end: what to say in that line.
        others: events before it.
    """
    if events_of(path, {"finished"}):
        return
    now = time.time()
    begin = next((event["time"] for event in events_of(path, {"attempt"})), now)
    log = EventLog(path)
    with contextlib.suppress(OSError):  # on a full disk it stays unsaid
        for event in ({"event": "failure", **failure}, *others, {"event": "finished", **end, "seconds": now - begin}):
            log.append(make_event(str(event["event"]), event, now))
    log.close()


def events_of(path: Path, names: Set[str]) -> list[dict[str, Any]]:
    """The events of these names in a log that nobody writes any more."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # cut off by the end of its writer
        if event["event"] in names:
            found.append(event)
    return found


POLL_S = 0.1
GONE_TIMEOUT_S = 10.0
CANCELLED_CODE = 130
LOOKUP_TIMEOUT_S = 30.0
"""Longest wait for SLURM's answer whether it has queued the job again by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How often a job's attempts may end in one way."""

    ends: frozenset[End]
    words: str
    setting: str
    most: int

    def is_passed(self, count: int) -> bool:
        """Whether ``count`` of them are too many."""
        return count > self.most


def limits(config: Config) -> tuple[Limit, ...]:
    """All of them; ends that are in none may come as often as they like."""
    restart = config.restart
    return (
        Limit(
            ends=frozenset({End.PREEMPTED}),
            words="was preempted",
            setting="restart.max_preemptions",
            most=restart.max_preemptions,
        ),
        Limit(
            ends=frozenset({End.TIMED_OUT}),
            words="ran out of time",
            setting="restart.max_timeouts",
            most=restart.max_timeouts,
        ),
        Limit(
            ends=frozenset({End.FAILED, End.LOST}),
            words="failed, or ended without a word,",
            setting="restart.max_failures",
            most=restart.max_failures,
        ),
    )


def passed_limit(config: Config, counted: Counter[End]) -> str | None:
    """The limit that a job has passed, as a sentence; None if it has passed none."""
    for limit in limits(config):
        count = sum(counted[end] for end in limit.ends)
        if limit.is_passed(count):
            return f"The job {limit.words} {count} times, more than `{limit.setting}` ({limit.most})."
    return None


def check_limits(config: Config, run_dir: Path, node: NodeEnvironment) -> None:
    """For a job that SLURM has queued again by itself.

    Raises:
        ProcessFailure: it has done so too often.
    """
    words = passed_limit(config, ends(run_dir, node.attempt, node.job_id))
    if words is not None:
        record_end(run_dir, node.attempt, End.FAILED)
        raise ProcessFailure(f"{words} HINT: `{command_line('resume', run_dir)}` goes on, and counts from zero.")


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
    while not reply.everybody_left and time.monotonic() < deadline:
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

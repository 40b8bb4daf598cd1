"""What a node does after its agent, or node 0's, was killed: the report, the end of the event log, the requeue.

A run that loses node 0's agent has no fault of its own, so it is continued in another attempt. If only the agent was
killed, its shim requeues the job. If the whole node is gone, another node does: SLURM takes a lost node out of the job
and, because the job was submitted with ``--no-kill``, lets it run on without its batch script until its time is over.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.common.errors import LauncherError
from launcher.common.run_dir import EVENTS, End, attempt_dir, record_end
from launcher.config import load_run_config
from launcher.config.schema import Config
from launcher.control.client import ControlClient
from launcher.control.protocol import NodeLeftRequest, NodeLostRequest
from launcher.events.failure_kinds import FailureKind
from launcher.events.log import EventLog, has_finished
from launcher.events.log_rules import EXIT_CODES
from launcher.events.reader import load_attempt
from launcher.events.schema import AttemptFinished, Event, FailureReported, JobRequeued
from launcher.layout import Role
from launcher.node.context import NodeEnvironment, node_environment
from launcher.node.outcome import requeue_job, run_has_exit_code
from launcher.slurm.client import REQUEUERS
from launcher.slurm.job_signals import cancel_own_job, node_removed_from_job

logger = logging.getLogger(__name__)

RANKS = range(1, REQUEUERS)
"""Nodes that may take over from node 0. Not all, because each queries SLURM."""

QUERY_S = 2.0
CALL_TIMEOUT_S = 3.0
LOOKUP_TIMEOUT_S = 2.0
LAST_S = 5.0
"""Longest wait after a signal to end; by then SLURM shows what it is about to do."""

CLAIM = "failover.json"
"""Of an attempt: which node took over from node 0. A file is created once, so that the job is not requeued twice."""


def report_failure(run_dir: Path, message: str, exit_code: int, **fields: Any) -> int:
    """Reports to the run that this node is lost; what follows from it is decided on node 0.

    Args:
        fields: of :class:`FailureReported`.

    Returns:
        The exit code of the node: 0 if node 0 received the report, because its exit code is the run's; ``exit_code``
        otherwise.
    """
    node = node_environment()
    fields.setdefault("kind", EXIT_CODES.get(exit_code, FailureKind.UNKNOWN))
    failure = FailureReported(message=message, node_rank=node.node_rank, hostname=node.hostname, **fields)
    directory = attempt_dir(run_dir, node.attempt)
    if node.node_rank == 0:
        _close_log(run_dir, node.attempt, failure, AttemptFinished(outcome="failed"))
        return exit_code
    try:
        client = ControlClient.of_attempt(directory)
        report = replace(failure, launcher_exit_code=exit_code)
        client.call(NodeLostRequest(node_rank=node.node_rank, failure=report), timeout_s=CALL_TIMEOUT_S)
        client.call(NodeLeftRequest(node_rank=node.node_rank), timeout_s=CALL_TIMEOUT_S)
        client.close()
    except (OSError, LauncherError):
        # Node 0 is not there any more, or not yet. Then the exit code of this node counts.
        return exit_code
    return 0


def node_0_killed(run_dir: Path, message: str, exit_code: int, **fields: Any) -> int:
    """Node 0's agent, and with it the control service, was killed, perhaps by its shim for having been stopped.

    Returns:
        The exit code of the node, which is the run's: 0 if the run goes on as another attempt.
    """
    node = node_environment()
    failure = FailureReported(message=message, node_rank=0, hostname=node.hostname, **fields)
    return 0 if _finalize(load_run_config(run_dir), run_dir, node, failure, End.FAILED) else exit_code


def run_node0_failover(run_dir: Path, is_end_requested: Callable[[], bool]) -> None:
    """On a node that has lost node 0, and has ended all that it ran: waits until SLURM has taken node 0 out of the job.

    Returns as soon as node 0 can be reached or has ended the attempt after all, or SLURM no longer runs the attempt. On
    nodes other than those of :data:`RANKS` it returns at once.
    """
    node, config = node_environment(), load_run_config(run_dir)
    if node.is_local or node.node_rank not in RANKS:
        return
    directory = attempt_dir(run_dir, node.attempt)
    logger.info("waiting until SLURM shows whether node 0 (%s) was removed from the job", node.hostnames[0])
    give_up_at: float | None = None
    while not (run_has_exit_code() or has_finished(directory / EVENTS)):
        is_removed = node_removed_from_job(node.hostnames[0])
        if is_removed:
            _take_over(config, run_dir, node, directory)
        if is_removed or is_removed is None:
            return
        if is_end_requested():
            give_up_at = give_up_at or time.monotonic() + LAST_S
        elif _is_back(directory):
            return
        if give_up_at is not None and time.monotonic() > give_up_at:
            return
        time.sleep(QUERY_S)


def _take_over(config: Config, run_dir: Path, node: NodeEnvironment, directory: Path) -> None:
    try:
        with (directory / CLAIM).open("x", encoding="utf-8") as file:
            json.dump({"node_rank": node.node_rank}, file)
    except FileExistsError:
        return
    failure = FailureReported(
        message=f"Node 0 ({node.hostnames[0]}) was lost, and with it the control service.",
        kind=FailureKind.NODE_LOST,
        role=Role.TRAINER.value,
        node_rank=0,
        hostname=node.hostnames[0],
    )
    if not _finalize(config, run_dir, node, failure, End.LOST):
        cancel_own_job()


def _finalize(config: Config, run_dir: Path, node: NodeEnvironment, failure: FailureReported, end: End) -> bool:
    """Ends the event log, and requeues the job if that is due; whether it is requeued."""
    state = load_attempt(run_dir, node.attempt)
    if state.outcome is not None:
        return False
    problem: str | None = None
    if state.cancelled is None and not any(known.first for known in state.failures):
        record_end(run_dir, node.attempt, end)
        problem, end = requeue_job(config, run_dir, node, end)
        if problem is None:
            requeued = JobRequeued(reason=end.value, attempt=node.attempt + 1)
            _close_log(run_dir, node.attempt, failure, requeued, AttemptFinished(outcome="requeued"))
            return True
    _close_log(run_dir, node.attempt, failure, AttemptFinished(outcome="failed", reason=problem))
    return False


def _close_log(run_dir: Path, attempt: int, *events: Event) -> None:
    """Adds the last events to the log of an attempt, if node 0's agent, its only writer, has ended without them."""
    state, now = load_attempt(run_dir, attempt), time.time()
    if state.outcome is not None:
        return
    log = EventLog(attempt_dir(run_dir, attempt) / EVENTS)
    seconds = now - (now if state.started_at is None else state.started_at)
    with contextlib.suppress(OSError):  # on a full disk they are lost
        for event in events:
            if isinstance(event, AttemptFinished):
                event = replace(event, seconds=seconds)  # noqa: PLW2901
            log.append(replace(event, time=now))
    log.close()


def _is_back(directory: Path) -> bool:
    """Whether node 0 can be reached again; then it was this node that was cut off, and node 0 decides what follows."""
    try:
        client = ControlClient.of_attempt(directory)
        client.status(timeout_s=LOOKUP_TIMEOUT_S)
        client.close()
    except (OSError, LauncherError):
        return False
    return True

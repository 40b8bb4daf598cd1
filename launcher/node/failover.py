"""Speaks for node 0's agent when that was killed: who sees to it that the job is queued again.

Nothing is wrong with such a run, so another attempt goes on with it. If only the agent was killed, its shim does so.
If the whole node is gone, another node has to: SLURM takes a lost node out of the job and, because the job was
submitted with ``--no-kill``, lets it run on without its batch script, until its time is over.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.common.errors import LauncherError
from launcher.common.keys import token_from_environment
from launcher.common.run_dir import CONTROL, EVENTS, End, attempt_dir, record_end
from launcher.config import load_run_config
from launcher.config.schema import Config
from launcher.control.client import ControlClient
from launcher.events.failure_kinds import FailureKind
from launcher.events.log import has_finished
from launcher.node.context import NodeEnvironment, node_environment
from launcher.node.outcome import close_log, events_of, requeue_job, run_has_exit_code
from launcher.slurm.job_signals import cancel_own_job, node_removed_from_job

logger = logging.getLogger(__name__)

RANKS = range(1, 4)
"""Nodes that may take over. Not all, because each queries SLURM."""

ASK_S = 2.0
CALL_TIMEOUT_S = 2.0
LAST_S = 5.0
"""Longest wait after a signal to end; by then SLURM shows what it is about to do."""

CLAIM = "stand_in.json"
"""Of an attempt: who stands in for node 0. A file is made once, so that the job is not queued again twice."""


def node_0_killed(run_dir: Path, message: str, exit_code: int, **fields: Any) -> int:
    """Node 0's agent, and with it the control service, was killed: by its shim if it had been stopped for too long.

    Returns:
        The exit code of the node, which answers for the run: 0 if the run goes on as another attempt.
    """
    node = node_environment()
    failure = {"message": message, "node_rank": 0, "hostname": node.hostname, **fields}
    return 0 if _finalize(load_run_config(run_dir), run_dir, node, failure, End.FAILED) else exit_code


def run_node0_failover(run_dir: Path, is_asked_to_end: Callable[[], bool]) -> None:
    """On a node that has lost node 0, and has ended all that it ran: waits until SLURM has taken node 0 out of the job.

    Returns as soon as node 0 has spoken after all, or SLURM no longer runs the attempt. On nodes other than those of
    :data:`RANKS` it returns at once.
    """
    node, config = node_environment(), load_run_config(run_dir)
    if node.is_local or node.node_rank not in RANKS:
        return
    directory = attempt_dir(run_dir, node.attempt)
    logger.info("waiting until SLURM says what has become of node 0 (%s)", node.hostnames[0])
    patience_until: float | None = None
    while not (run_has_exit_code() or has_finished(directory / EVENTS)):
        told = node_removed_from_job(node.hostnames[0])
        if told:
            _take_over(config, run_dir, node, directory)
        if told or told is None:
            return
        if is_asked_to_end():
            patience_until = patience_until or time.monotonic() + LAST_S
        elif _is_back(directory):
            return
        if patience_until is not None and time.monotonic() > patience_until:
            return
        time.sleep(ASK_S)


def _take_over(config: Config, run_dir: Path, node: NodeEnvironment, directory: Path) -> None:
    try:
        with (directory / CLAIM).open("x", encoding="utf-8") as file:
            json.dump({"node_rank": node.node_rank}, file)
    except FileExistsError:
        return
    message = f"Node 0 ({node.hostnames[0]}) was lost, and with it the control service."
    failure = {"message": message, "kind": FailureKind.NODE_LOST, "node_rank": 0, "hostname": node.hostnames[0]}
    failure["role"] = "trainer"
    if not _finalize(config, run_dir, node, failure, End.LOST):
        cancel_own_job()


def _finalize(config: Config, run_dir: Path, node: NodeEnvironment, failure: dict[str, Any], end: End) -> bool:
    """Ends the event log, and queues the job again if that is wanted; whether it is queued."""
    path = attempt_dir(run_dir, node.attempt) / EVENTS
    if events_of(path, {"finished"}):
        return False
    if events_of(path, {"cancelled"}) or any(event.get("first") for event in events_of(path, {"failure"})):
        close_log(path, failure, {"outcome": "failed"})
        return False
    record_end(run_dir, node.attempt, end)
    problem, end = requeue_job(config, run_dir, node, end)
    if problem is not None:
        close_log(path, failure, {"outcome": "failed", "reason": problem})
        return False
    queued = {"event": "requeued", "reason": end.value, "attempt": node.attempt + 1}
    close_log(path, failure, {"outcome": "requeued"}, queued)
    return True


def _is_back(directory: Path) -> bool:
    """Whether node 0 can be reached again; then it was this node that was cut off, and node 0 decides what follows."""
    try:
        client = ControlClient(
            json.loads((directory / CONTROL).read_text(encoding="utf-8"))["control"], token_from_environment()
        )
        client.status(timeout_s=CALL_TIMEOUT_S)
        client.close()
    except (OSError, LauncherError):
        return False
    return True

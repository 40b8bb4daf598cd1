"""The last word on a node whose agent did not end as it should; said by the agent itself, or by its shim."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Set
from pathlib import Path
from typing import Any

from launcher.common.errors import LauncherError
from launcher.common.keys import token_from_environment
from launcher.common.run_dir import CONTROL, EVENTS, attempt_dir
from launcher.control.client import ControlClient
from launcher.control.protocol import NodeLeftRequest, NodeLostRequest
from launcher.events.failure_kinds import FailureKind
from launcher.events.log import EventLog
from launcher.events.log_rules import EXIT_CODES
from launcher.events.schema import FailureReported
from launcher.events.serialize import make_event
from launcher.node.node_environment import node_environment

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
        # Node 0 is not there any more, or not yet. Then the exit code is what tells.
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

"""The last word on a node whose agent did not end as it should; said by the agent itself, or by its guard."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from launcher.agent.node import node_environment
from launcher.control.client import ControlClient
from launcher.control.keys import token_from_environment
from launcher.errors import LauncherError
from launcher.events import EventLog
from launcher.run_dir import CONTROL, EVENTS, attempt_dir

CALL_TIMEOUT_S = 3.0


def report_failure(run_dir: Path, message: str, exit_code: int, **fields: Any) -> int:
    """Tells the run that this node is lost and gone; what follows from it, the run decides.

    Returns:
        The exit code of the node: 0 if node 0 knows, because node 0 answers for the run; ``exit_code`` otherwise.
    """
    node = node_environment()
    directory = attempt_dir(run_dir, node.attempt)
    failure = {"message": message, "node_rank": node.node_rank, "hostname": node.hostname, **fields}
    if node.node_rank == 0:
        _close_log(directory / EVENTS, failure)
        return exit_code
    try:
        address = json.loads((directory / CONTROL).read_text())["control"]
        client = ControlClient(address, token_from_environment())
        told = {**failure, "launcher_exit_code": exit_code}
        client.call("lost", timeout_s=CALL_TIMEOUT_S, node_rank=node.node_rank, failure=told)
        client.call("gone", timeout_s=CALL_TIMEOUT_S, node_rank=node.node_rank)
        client.close()
    except (OSError, LauncherError):
        # Node 0 is not there any more, or not yet. Then the exit code is what tells.
        return exit_code
    return 0


def _close_log(path: Path, failure: dict[str, Any]) -> None:
    """Node 0's agent alone writes the event log; when it has ended without a last line, that line is added here."""
    text = path.read_text() if path.exists() else ""
    begin = now = time.time()
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # cut off by the end of its writer
        if event["event"] == "finished":
            return
        if event["event"] == "attempt":
            begin = event["time"]
    log = EventLog(path)
    log.append({"time": now, "event": "failure", **failure})
    log.append({"time": now, "event": "finished", "outcome": "failed", "seconds": now - begin})
    log.close()

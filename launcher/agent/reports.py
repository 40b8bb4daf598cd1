"""What an agent tells the run: which process started, ended or failed, and how."""

from __future__ import annotations

import signal
from typing import Any

from launcher.agent.context import NodeContext
from launcher.agent.reason import reason
from launcher.agent.worker import Worker, tail
from launcher.control.client import ControlClient
from launcher.control.state import MODEL_READY, replica_key
from launcher.errors import EngineTimeout, ProcessFailure
from launcher.layout import Role


class Reports:
    """Speaks to the control service for one node."""

    def __init__(self, context: NodeContext, client: ControlClient) -> None:
        self._context = context
        self._client = client

    def started(self, worker: Worker) -> None:
        """A process was started."""
        self._process(worker, state="started")

    def ended(self, worker: Worker) -> None:
        """A process has ended, well or not."""
        self._process(worker, state="ended", exit_code=worker.poll())

    def model_begins(self) -> None:
        """The tiny model is being made."""
        self._event("phase", phase="make model", who="model", state="begin")

    def model_ready(self, *, made: bool) -> None:
        """The directory of the model is complete."""
        if made:
            self._event("phase", phase="make model", who="model", state="end")
        self._client.put(MODEL_READY, True)

    def engine_ready(self, worker: Worker, url: str) -> None:
        """An engine answers."""
        replica = worker.process.rank
        self._event("engine_ready", replica=replica, url=url, seconds=worker.age_s())
        self._client.put(replica_key(replica, "ready"), True)

    def ended_badly(self, worker: Worker) -> ProcessFailure:
        """A process ended that should not have, or not like this; the error to raise."""
        what = f"ended with {worker.describe_end()} after {worker.age_s():.0f} s"
        code = worker.poll()
        why = reason(worker.log, worker.error_file, is_exit=code is not None and code >= 0)
        if why is None and code == -signal.SIGKILL:
            return self._failed(worker, f"{what}. HINT: it was killed from outside; most often memory had run out.")
        return self._failed(worker, what + (f": {why}" if why else "."))

    def not_ready(self, worker: Worker, timeout_s: float) -> ProcessFailure:
        """An engine does not answer; the error to raise."""
        what = (
            f"was not ready within `inference.ready_timeout_s` ({timeout_s:g} s)."
            " HINT: its log shows how far it came; set a longer time if it was still loading."
        )
        return self._failed(worker, what, error=EngineTimeout)

    def _failed(self, worker: Worker, what: str, *, error: type[ProcessFailure] = ProcessFailure) -> ProcessFailure:
        process, node = worker.process, self._context.node
        is_helper = process.role is Role.HELPER
        who = process.name if is_helper else f"{process.role.value} {process.rank}"
        message = f"{who} on node {node.node_rank} ({node.hostname}) {what}"
        failure = error(message, log=worker.log, tail=tail(worker.log))
        self._client.call(
            "fail",
            failure={
                "message": message,
                "process": process.name,
                "role": process.name if is_helper else process.role.value,
                "node_rank": node.node_rank,
                "hostname": node.hostname,
                "rank": None if is_helper else process.rank,
                "exit_code": worker.poll(),
                "log": str(worker.log),
                "tail": list(failure.tail),
                "launcher_exit_code": failure.exit_code,
            },
        )
        return failure

    def guard_killed(self) -> None:
        """This node's guard was killed, which no orderly end would do."""
        node = self._context.node
        message = f"The guard on node {node.node_rank} ({node.hostname}) was killed; the node ends its processes."
        failure = {"message": message, "node_rank": node.node_rank, "hostname": node.hostname}
        self._client.call("fail", failure=failure)

    def _process(self, worker: Worker, **fields: Any) -> None:
        process = worker.process
        self._event(
            "process",
            name=process.name,
            role=process.role.value,
            node_rank=process.node_rank,
            rank=process.rank,
            pid=worker.pid,
            **fields,
        )

    def _event(self, event: str, **fields: Any) -> None:
        self._client.call("event", event=event, fields=fields)

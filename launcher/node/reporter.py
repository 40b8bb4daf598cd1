"""What an agent reports to the run: which process started, ended or failed, and how; sent in order from a thread."""

from __future__ import annotations

import logging
import signal
import time
from typing import Literal

from launcher.common.delivery import DeliveryThread
from launcher.common.errors import ControlError, ControlRefusal, EngineTimeout, ProcessFailure
from launcher.control import protocol
from launcher.control.client import ControlClient
from launcher.control.model import MODEL_READY
from launcher.events.failure_kinds import FailureKind
from launcher.events.log_tail import analyze_failure, failure_line
from launcher.events.schema import Event, FailureReported, PhaseChanged, ProcessChanged
from launcher.layout import Role
from launcher.node.context import NodeContext
from launcher.node.process import WorkerProcess, tail

logger = logging.getLogger(__name__)

CALL_TIMEOUT_S = 3.0
RETRY_S = 0.25


class Outbox(DeliveryThread[protocol.ControlRequest[protocol.Reply]]):
    """Sends requests to the control service. One that is refused is dropped, with a line in the log.

    Args:
        client: not shared.
    """

    def __init__(self, client: ControlClient) -> None:
        self._client = client
        super().__init__(self._send, name="outbox", retry_s=RETRY_S)

    def _send(self, request: protocol.ControlRequest[protocol.Reply]) -> bool:
        try:
            self._client.call(request, timeout_s=CALL_TIMEOUT_S)
        except ControlRefusal as error:
            logger.error("%s", error)
        except ControlError:
            return False
        return True


class Reporter:
    """Speaks to the control service for one node; never waits for it."""

    def __init__(self, context: NodeContext, outbox: Outbox) -> None:
        self._context = context
        self._outbox = outbox

    def started(self, worker: WorkerProcess) -> None:
        """A process was started."""
        self._process(worker, "started")

    def ended(self, worker: WorkerProcess) -> None:
        """A process has ended, well or not."""
        self._process(worker, "ended", worker.poll())

    def model_begins(self) -> None:
        """The tiny model is being made."""
        self._event(PhaseChanged(phase="make model", who="model", state="begin"))

    def model_ready(self, *, made: bool) -> None:
        """The directory of the model is complete."""
        if made:
            self._event(PhaseChanged(phase="make model", who="model", state="end"))
        self._outbox.put(protocol.PutRequest(key=MODEL_READY, value=True))

    def engine_ready(self, worker: WorkerProcess, url: str) -> None:
        """An engine answers."""
        process = worker.process
        self._outbox.put(
            protocol.EngineReadyRequest(
                replica=process.rank, restart_count=worker.restart_count, url=url, seconds=worker.age_s()
            )
        )

    def master(self, replica: int, restart_count: int, address: str) -> None:
        """The rendezvous address of a replica over several nodes."""
        self._outbox.put(protocol.EngineMasterRequest(replica=replica, restart_count=restart_count, address=address))

    def done(self, restart_count: int) -> None:
        """Every trainer rank of this node has ended well."""
        self._outbox.put(protocol.TrainersDoneRequest(node_rank=self._context.node_rank, restart_count=restart_count))

    def signalled(self, signum: signal.Signals) -> None:
        """This node received a signal that requests the end of the run, at once or after a checkpoint."""
        self._outbox.put(protocol.SignalRequest(name=signum.name))

    def ended_badly(self, worker: WorkerProcess) -> ProcessFailure:
        """A process ended that should not have, or not like this; the failure, if it is the run's."""
        what = f"ended with {worker.describe_end()} after {worker.age_s():.0f} s"
        code = worker.poll()
        why = failure_line(
            worker.log, worker.error_file, is_exit=code is not None and code >= 0, begin=worker.log_start
        )
        if why is None and code == -signal.SIGKILL:
            return self._failed(worker, f"{what}. HINT: it was killed from outside; most often memory had run out.")
        return self._failed(worker, what + (f": {why}" if why else "."))

    def not_ready(self, worker: WorkerProcess, timeout_s: float) -> ProcessFailure:
        """An engine that starts does not answer, and is killed."""
        what = (
            f"was not ready within `inference.ready_timeout_s` ({timeout_s:g} s)."
            " HINT: its log shows how far it came; set a longer time if it was still loading."
        )
        return self._failed(worker, what, is_hanging=True, error=EngineTimeout)

    def hangs(self, worker: WorkerProcess, seconds: float) -> ProcessFailure:
        """An engine that was ready does not answer any more, and is killed."""
        what = f"did not answer `/health` for {seconds:.0f} s (`restart.engine_health_timeout_s`)."
        return self._failed(worker, what, is_hanging=True)

    def refuses(self, worker: WorkerProcess, seconds: float) -> ProcessFailure:
        """An engine that was ready has closed its port, or answers with an error, and does not end; so it is
        killed."""
        return self._failed(worker, f"has not been healthy for {seconds:.0f} s, and does not end.", is_hanging=True)

    def stopped(self, worker: WorkerProcess, seconds: float) -> ProcessFailure:
        """A process, or one below it, was stopped by a signal and not continued; it is killed."""
        what = f"has had a stopped process (SIGSTOP) for {seconds:g} s (`restart.stopped_process_timeout_s`)."
        return self._failed(worker, what, is_hanging=True)

    def _failed(
        self,
        worker: WorkerProcess,
        what: str,
        *,
        is_hanging: bool = False,
        error: type[ProcessFailure] = ProcessFailure,
    ) -> ProcessFailure:
        process, context = worker.process, self._context
        is_helper = process.role is Role.HELPER
        who = process.name if is_helper else f"{process.role.value} {process.rank}"
        role = process.name if is_helper else process.role.value
        message = f"{who} on node {context.node_rank} ({context.hostname}) {what}"
        failure = error(message, log=worker.log, tail=tail(worker.log, begin=worker.log_start))
        exit_code = None if is_hanging else worker.poll()
        found = analyze_failure(worker.log, worker.error_file, exit_code=exit_code, begin=worker.log_start)
        report = FailureReported(
            message=message,
            kind=found.kind,
            is_symptom=found.is_symptom,
            line=found.line or None,
            process=process.name,
            role=role,
            node_rank=context.node_rank,
            hostname=context.hostname,
            rank=None if is_helper else process.rank,
            exit_code=exit_code,
            # By this node's clock: what is reported first need not have failed first.
            at=time.time(),
            log=str(worker.log),
            tail=list(failure.tail),
            launcher_exit_code=failure.exit_code,
        )
        self._outbox.put(
            protocol.ProcessEndedRequest(
                node_rank=context.node_rank,
                role=role,
                rank=process.rank,
                restart_count=worker.restart_count,
                exit_code=exit_code,
                failure=report,
            )
        )
        return failure

    def shim_killed(self) -> None:
        """This node's shim was killed, which no orderly end would do."""
        node_rank, hostname = self._context.node_rank, self._context.hostname
        message = f"The shim on node {node_rank} ({hostname}) was killed; the node ends its processes."
        failure = FailureReported(message=message, kind=FailureKind.KILLED, node_rank=node_rank, hostname=hostname)
        self._outbox.put(protocol.NodeLostRequest(node_rank=node_rank, failure=failure))

    def _process(self, worker: WorkerProcess, state: Literal["started", "ended"], exit_code: int | None = None) -> None:
        process = worker.process
        self._event(
            ProcessChanged(
                name=process.name,
                state=state,
                role=process.role.value,
                node_rank=self._context.node_rank,
                rank=process.rank,
                restart_count=worker.restart_count,
                pid=worker.pid,
                exit_code=exit_code,
            )
        )

    def _event(self, event: Event) -> None:
        self._outbox.put(protocol.EventRequest.of(event))

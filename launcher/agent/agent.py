"""One node's agent, from its environment to its exit code."""

from __future__ import annotations

import logging
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from launcher import log
from launcher.agent.beats import Beats
from launcher.agent.node import NodeEnvironment, check_allocation, node_environment, own_address
from launcher.agent.supervisor import Supervisor
from launcher.config import load_run_config
from launcher.config.schema import Config
from launcher.control.client import ControlClient
from launcher.control.keys import token_from_environment
from launcher.control.server import ControlServer
from launcher.control.state import JobState
from launcher.errors import AllocationError, ControlError
from launcher.events import EventLog
from launcher.layout import Layout, layout_to_json, plan
from launcher.ports import hold_free_port, port_of
from launcher.run_dir import attempt_dir, read_submission, write_atomically

logger = logging.getLogger(__name__)

CONTROL_FILE = "control.json"
POLL_S = 0.1
GONE_TIMEOUT_S = 10.0


@dataclass(slots=True)
class StopRequest:
    """The first signal that asked this agent to end; later ones change nothing."""

    reason: str | None = None

    def install(self) -> None:
        """Takes over the signals that ask for an end."""
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        if self.reason is None:
            name = signal.Signals(signum).name
            what = "time limit or preemption" if signum == signal.SIGUSR2 else "cancelled"
            self.reason = f"{what} ({name})"


def run(run_dir: Path) -> int:
    """Runs this node's share of a run.

    Returns:
        0 after an orderly end. Node 0 answers for the whole job: its code is not 0 unless the job succeeded.

    Raises:
        AllocationError: the allocation is not what was planned.
        ControlError: node 0 cannot be reached.
    """
    stop = StopRequest()
    stop.install()
    node = node_environment()
    log.configure(f"node {node.node_rank} {node.hostname}")
    config = load_run_config(run_dir)
    directory = attempt_dir(run_dir, node.attempt)
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    events = EventLog(directory / "events.jsonl") if node.node_rank == 0 else None
    try:
        check_allocation(
            node,
            nodes=config.layout.nodes,
            gpus_per_node=config.layout.gpus_per_node,
            device=config.layout.device,
        )
    except AllocationError as error:
        if events is not None:
            now = time.time()
            events.append({"time": now, "event": "failure", "message": str(error), "exit_code": error.exit_code})
            events.append({"time": now, "event": "finished", "outcome": "failed", "seconds": 0.0})
        raise
    layout = plan(config, node.hostnames)
    address = own_address(node)
    token = token_from_environment()
    server = None
    if events is not None:
        (directory / "layout.json").write_text(layout_to_json(layout) + "\n")
        server = _serve_control(config, layout, events, directory, address, token)
        control = server[1]
    else:
        control = _find_control(directory, config.start_timeout_s, stop)
    client = ControlClient(control, token)
    beats = Beats(ControlClient(control, token), node.node_rank, config.lease_timeout_s)
    try:
        client.call("hello", node_rank=node.node_rank, hostname=node.hostname, address=address)
        beats.start()
        supervisor = Supervisor(
            config=config,
            layout=layout,
            node_rank=node.node_rank,
            run_dir=run_dir,
            attempt=node.attempt,
            address=address,
            token=token,
            client=client,
            beats=beats,
        )
        code = supervisor.supervise(stop, POLL_S)
        return _conclude(client) if server is not None else code
    finally:
        beats.close()
        client.close()
        if server is not None:
            server[0].close()
        if events is not None:
            events.close()


def _serve_control(
    config: Config, layout: Layout, events: EventLog, directory: Path, address: str, token: str
) -> tuple[ControlServer, str]:
    """Starts the control service and tells the other nodes where it is."""
    state = JobState(
        layout,
        events.append,
        start_timeout_s=config.start_timeout_s,
        lease_timeout_s=config.lease_timeout_s,
    )
    if (submission := read_submission(directory.parent.parent)) is not None:
        events.append({"event": "submitted", **submission})
    state.emit(
        "attempt",
        attempt=int(directory.name),
        nodes=len(layout.nodes),
        trainer_nodes=len(layout.trainer_nodes),
        inference_nodes=len(layout.inference_nodes),
        world_size=layout.world_size,
        replicas=len(layout.replicas),
    )
    sock = hold_free_port(address)
    control = f"{address}:{port_of(sock)}"
    server = ControlServer(state, sock, token)
    server.start()
    write_atomically(directory / CONTROL_FILE, {"control": control})
    return server, control


def _find_control(directory: Path, timeout_s: float, stop: StopRequest) -> str:
    """Waits for node 0 to say where the control service listens."""
    import json

    path = directory / CONTROL_FILE
    deadline = time.monotonic() + timeout_s
    logger.info("waiting for node 0 to write %s (at most %g s)", path, timeout_s)
    while not path.exists():
        if stop.reason is not None:
            raise ControlError(f"Ended while waiting for node 0: {stop.reason}.")
        if time.monotonic() > deadline:
            raise ControlError(
                f"Node 0 did not write {path} within `start_timeout_s` ({timeout_s:g}). HINT: `output_dir` must be on a"
                " filesystem that all nodes share; see the log of node 0."
            )
        # A listing makes network filesystems look again instead of answering from their cache of absent names.
        list(directory.iterdir())
        time.sleep(POLL_S)
    return str(json.loads(path.read_text())["control"])


def _conclude(client: ControlClient) -> int:
    """Node 0's last duty: waits until the others have left, and says how it all ended."""
    deadline = time.monotonic() + GONE_TIMEOUT_S
    reply: dict[str, Any] = client.call("get", keys=[])
    while not reply["everybody_gone"] and time.monotonic() < deadline:
        time.sleep(POLL_S)
        reply = client.call("get", keys=[])
    outcome = {"finished": "completed", "cancelled": "cancelled"}.get(reply["phase"], "failed")
    client.call("event", event="finished", fields={"outcome": outcome})
    if outcome == "completed":
        return 0
    failure = reply["failure"] or {}
    return int(failure.get("launcher_exit_code", 130 if outcome == "cancelled" else 5))

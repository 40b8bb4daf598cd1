"""One node's agent, from its environment to its exit code."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from launcher.common.env import LAUNCHER_SCRATCH
from launcher.common.errors import ControlError
from launcher.common.jsonio import write_json
from launcher.common.keys import token_from_environment
from launcher.common.ports import hold_free_port, port_of
from launcher.common.run_dir import CONTROL, EVENTS, LAYOUT, attempt_dir, read_submission, record_begin
from launcher.common.startup import configure_logging
from launcher.config import load_run_config
from launcher.config.schema import Config
from launcher.control.client import ControlClient
from launcher.control.protocol import HelloRequest
from launcher.control.server import ControlServer
from launcher.control.state import ControlSettings, new_state
from launcher.events.log import EventLog, EventWriter, has_finished
from launcher.events.schema import AttemptStarted
from launcher.events.serialize import make_event
from launcher.layout import Layout, layout_to_json, plan
from launcher.node.compile_caches import keeper_of
from launcher.node.context import NodeContext, NodeEnvironment, check_allocation, node_environment, own_address
from launcher.node.heartbeat import Heartbeat
from launcher.node.outcome import check_limits, finalize, run_has_exit_code
from launcher.node.reporter import Outbox
from launcher.node.signal_policy import SignalPolicy
from launcher.node.signals import StopRequest
from launcher.node.supervisor import NodeSupervisor
from launcher.preflight.aggregate import compare_reports
from launcher.preflight.bad_nodes import remember
from launcher.preflight.context import CheckContext
from launcher.preflight.runner import Preflight

logger = logging.getLogger(__name__)

POLL_S = 0.1


def run(run_dir: Path, stop: StopRequest, shim: int) -> int:
    """Runs this node's share of a run. Main thread only.

    Args:
        stop: holds the signals that requested the end.
        shim: process id of this node's shim.

    Returns:
        0 after an orderly end. Node 0's code is the run's: not 0 unless the run succeeded.

    Raises:
        AllocationError: the allocation is not what was planned.
        ControlError: node 0 cannot be reached.
    """
    began = time.monotonic()
    node = node_environment()
    configure_logging(f"node {node.node_rank} {node.hostname}")
    config = load_run_config(run_dir)
    directory = attempt_dir(run_dir, node.attempt)
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    address = own_address(node)
    token = token_from_environment()
    policy: SignalPolicy | None = None
    with ExitStack() as cleanup:
        if node.node_rank == 0:
            record_begin(run_dir, node.attempt, node.job_id)
            check_limits(config, run_dir, node)
            check_allocation(node, config.layout)
            layout = plan(config, node.hostnames)
            policy = SignalPolicy(config, run_dir, node)
            control = _serve_control(
                config, layout, node, policy, run_dir=run_dir, address=address, token=token, cleanup=cleanup
            )
        else:
            # In the other order, so that a wrong allocation can be reported to node 0.
            found = _find_control(directory, config.start_timeout_s, stop)
            if found is None:
                return 0
            control = found
            check_allocation(node, config.layout)
            layout = plan(config, node.hostnames)
        client = ControlClient(control, token)
        cleanup.callback(client.close)
        heartbeat = Heartbeat(
            ControlClient(control, token),
            node.node_rank,
            config.lease_timeout_s,
            partial(has_finished, directory / EVENTS),
        )
        context = NodeContext(
            config=config,
            layout=layout,
            node_rank=node.node_rank,
            hostname=node.hostname,
            run_dir=run_dir,
            attempt=node.attempt,
            address=address,
            control=control,
            token=token,
            shim=shim,
        )
        caches = keeper_of(context)
        caches.start()
        cleanup.callback(caches.close)
        if config.preflight.action != "off":
            preflight = Preflight(_site(context, node), client, heartbeat.wait_past)
            cleanup.callback(preflight.close)
            preflight.start()
        client.call(HelloRequest(node_rank=node.node_rank, hostname=node.hostname, address=address))
        heartbeat.start()
        cleanup.callback(heartbeat.close)
        os.environ.update(caches.environment())
        outbox = Outbox(ControlClient(control, token))
        cleanup.callback(outbox.close)
        NodeSupervisor(context, outbox, heartbeat).supervise(stop, POLL_S)
        if policy is None:
            return 0
        return finalize(context, client, node, began, lambda: policy.reason)


def _serve_control(
    config: Config,
    layout: Layout,
    node: NodeEnvironment,
    policy: SignalPolicy,
    *,
    run_dir: Path,
    address: str,
    token: str,
    cleanup: ExitStack,
) -> str:
    """Node 0: opens the event log, starts the control service, and publishes its address to the other nodes."""
    directory = attempt_dir(run_dir, node.attempt)
    (directory / LAYOUT).write_text(layout_to_json(layout) + "\n", encoding="utf-8")
    events = EventWriter(EventLog(directory / EVENTS))
    cleanup.callback(events.close)
    if (submission := read_submission(run_dir)) is not None:
        events.append(make_event("submitted", {**submission, "job_id": node.job_id}, float(submission["time"])))
    cleanup.callback(policy.close)
    settings = ControlSettings(
        layout=layout,
        start_timeout_s=config.start_timeout_s,
        lease_timeout_s=config.lease_timeout_s,
        has_preflight=config.preflight.action != "off",
        preflight_timeout_s=2 * config.preflight.timeout_s + config.lease_timeout_s,
        bad_nodes_fail=config.preflight.action == "fail",
        restart=config.restart,
        min_replicas=config.inference.min_replicas,
        stop_timeout_s=config.checkpoint.stop_timeout_s,
        write_timeout_s=config.checkpoint.write_timeout_s,
    )
    state = new_state(settings, time.monotonic())
    cleanup.callback(lambda: remember(state.preflight.bad_nodes, config.preflight, run_dir))
    events.append(
        AttemptStarted(
            time=time.time(),
            attempt=node.attempt,
            job_id=node.job_id,
            nodes=len(layout.nodes),
            spares=len(layout.spares),
            trainer_nodes=len(layout.trainer_nodes),
            inference_nodes=len(layout.inference_nodes),
            world_size=layout.world_size,
            replicas=len(layout.replicas),
        )
    )
    sock = hold_free_port(address)
    control = f"{address}:{port_of(sock)}"
    server = ControlServer(
        state,
        sock,
        token,
        log=events.append,
        compare=partial(compare_reports, [node.hostname for node in layout.all_nodes]),
        on_signal=policy.handle,
    )
    server.start()
    cleanup.callback(server.close)
    policy.start(ControlClient(control, token))
    write_json(directory / CONTROL, {"control": control})
    return control


def _site(context: NodeContext, node: NodeEnvironment) -> CheckContext:
    return CheckContext(
        config=context.config,
        layout=context.layout,
        node=context.node,
        run_dir=context.run_dir,
        attempt_dir=context.attempt_dir,
        model_path=context.model_path if context.config.model.path else None,
        address=context.address,
        scratch=Path(os.environ.get(LAUNCHER_SCRATCH) or tempfile.gettempdir()),
        is_simulated=node.is_local,
    )


def _find_control(directory: Path, timeout_s: float, stop: StopRequest) -> str | None:
    """Waits until node 0 has published the address of the control service; None if a stop is requested before that."""
    path = directory / CONTROL
    deadline = time.monotonic() + timeout_s
    logger.info("waiting for node 0 to write %s (at most %g s)", path, timeout_s)
    while not path.exists():
        if stop.signal is not None:
            logger.info("ended while waiting for node 0 (%s)", stop.signal.name)
            return None
        if run_has_exit_code() or has_finished(directory / EVENTS):
            raise ControlError("Node 0 ended before the control service was up. HINT: see the log of node 0.")
        if time.monotonic() > deadline:
            raise ControlError(
                f"Node 0 did not write {path} within `start_timeout_s` ({timeout_s:g}). HINT: `output_dir` must be on a"
                " filesystem that all nodes share; see the log of node 0."
            )
        # A listing makes a network filesystem drop its cache of names that do not exist.
        list(directory.iterdir())
        time.sleep(POLL_S)
    return ControlClient.of_attempt(directory).address

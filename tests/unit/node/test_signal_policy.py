"""Node 0's decision about signals, with the control service that it is made for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from launcher.common.keys import new_token
from launcher.common.ports import hold_free_port, port_of
from launcher.config import Config, LayoutConfig
from launcher.control.client import ControlClient
from launcher.control.protocol import SignalRequest
from launcher.control.server import ControlServer
from launcher.control.state import ControlSettings, new_state
from launcher.events.schema import RunCancelled
from launcher.layout import plan
from launcher.node.context import NodeEnvironment
from launcher.node.signal_policy import SignalPolicy


def test_two_nodes_that_receive_a_signal_at_once_do_not_stop_the_control_service(tmp_path: Path) -> None:
    """While the first signal leads to a call of the service, the service forwards the second one."""
    node = NodeEnvironment(node_rank=0, hostnames=("a", "b"), gpus=None, job_id=None, attempt=1, is_local=True)
    config = Config(layout=LayoutConfig(nodes=2, inference_nodes=1, gpus_per_node=1, device="cpu"))
    policy = SignalPolicy(config, tmp_path, node)
    settings = ControlSettings(layout=plan(config), start_timeout_s=60, lease_timeout_s=10)
    log: list[Any] = []

    def on_signal(name: str) -> None:
        policy.handle(name)
        # By now the call has begun; it cannot be answered before this returns.
        time.sleep(0.3)
        policy.handle("SIGINT")

    token, sock = new_token(), hold_free_port("127.0.0.1")
    server = ControlServer(new_state(settings, time.monotonic()), sock, token, log=log.append, on_signal=on_signal)
    server.start()
    address = f"127.0.0.1:{port_of(sock)}"
    policy.start(ControlClient(address, token))
    client = ControlClient(address, token)
    try:
        client.call(SignalRequest(name="SIGTERM"))
        deadline = time.monotonic() + 60
        while not any(isinstance(event, RunCancelled) for event in log):
            assert time.monotonic() < deadline, log
            time.sleep(0.01)
    finally:
        client.close()
        policy.close()
        server.close()

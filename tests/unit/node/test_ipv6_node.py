"""A node that has addresses of IPv6 alone, as a network namespace of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ADDRESS = "fd00:7::1"
SETUP = f"""
set -e
ip link set lo up
ip address delete 127.0.0.1/8 dev lo
ip link add fabric type veth peer name switch
ip link set switch up
ip address add {ADDRESS}/64 dev fabric nodad
ip link set fabric up
ip -6 route add default dev fabric
exec "$@"
"""
PROGRAM = """
import http.server, json, socket, sys, threading
from launcher.common.ports import hold_free_port, port_of, url_host
from launcher.node.health import Health, get_health
from launcher.node.context import node_environment, own_address
node = node_environment()
address = own_address(node)
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
sock = hold_free_port(address)
server = http.server.HTTPServer((address, 0), Healthy, bind_and_activate=False)
server.socket = sock
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://{url_host(address)}:{port_of(sock)}"
print(json.dumps({"address": address, "url": url, "healthy": get_health(f"{url}/health") is Health.HEALTHY}))
"""


def test_its_address_serves_control_and_engines() -> None:
    probe = subprocess.run(
        ["unshare", "--net", "ip", "link", "add", "x", "type", "veth", "peer", "name", "y"], check=False
    )
    if probe.returncode and not os.environ.get("CI"):
        pytest.skip("this machine allows no network namespace")
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
        **{"SLURM_JOB_ID": "7", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "gpu-1", "SLURMD_NODENAME": "gpu-1"},
        "PYTHONPATH": str(ROOT),
        # None of our requests goes through it.
        "http_proxy": "http://192.0.2.1:3128",
    }
    command = ["unshare", "--net", "bash", "-c", SETUP, "setup", sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["address"] == ADDRESS
    assert found["url"].startswith(f"http://[{ADDRESS}]:")
    assert found["healthy"]

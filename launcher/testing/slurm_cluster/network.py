"""Joins the network namespaces of the nodes to one switch, and cuts and heals single links.

The switch lives in the namespace of the login node. Nothing has a name outside these namespaces, so that everything
goes when their processes go.
"""

from __future__ import annotations

import subprocess


def create_switch(login_pid: int, address: str) -> None:
    """Makes the bridge, which is at the same time the login node's own address."""
    _ip(login_pid, "link", "add", "switch", "type", "bridge")
    _ip(login_pid, "address", "add", f"{address}/16", "dev", "switch")
    _ip(login_pid, "link", "set", "switch", "up")


def connect(login_pid: int, node_pid: int, index: int, address: str) -> None:
    """Lays a cable from node ``index`` to the switch."""
    cable = _cable(index)
    _ip(login_pid, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(node_pid))
    _ip(login_pid, "link", "set", cable, "master", "switch", "up")
    _ip(node_pid, "address", "add", f"{address}/16", "dev", "eth0")
    _ip(node_pid, "link", "set", "eth0", "up")


def set_link(login_pid: int, index: int, *, up: bool) -> None:
    """Heals or cuts the cable of node ``index``; no connection is closed, packets just stop."""
    _ip(login_pid, "link", "set", _cable(index), "up" if up else "down")


def _cable(index: int) -> str:
    return f"node{index}"


def _ip(pid: int, *arguments: str) -> None:
    subprocess.run(["nsenter", "--target", str(pid), "--net", "ip", *arguments], check=True)

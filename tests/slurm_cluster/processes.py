"""The processes of a node, whatever session, group or name they gave themselves; and the network between the nodes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.common.procfs import reap


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeProcess:
    """One living process, as it was when it was looked at."""

    pid: int
    parent: int
    name: str
    """What ``ps -o comm`` shows."""

    @property
    def command(self) -> str:
        """Its command line, empty once it is gone."""
        return _read(self.pid, "cmdline").replace("\0", " ").strip()

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment it was started with (a program that sets its own title may have overwritten it)."""
        pairs = (entry.partition("=") for entry in _read(self.pid, "environ").split("\0") if "=" in entry)
        return {name: value for name, _, value in pairs}


def descendants(root: int) -> list[NodeProcess]:
    """Living processes below ``root``, itself left out; zombies are not living."""
    children: dict[int, list[NodeProcess]] = defaultdict(list)
    zombies: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _read(int(entry.name), "stat")):
            # The name may hold spaces and parentheses itself: it ends at the last one.
            head, _, tail = stat.rpartition(")")
            state, parent, *_ = tail.split()
            process = NodeProcess(pid=int(entry.name), parent=int(parent), name=head.partition("(")[2])
            children[process.parent].append(process)
            if state in "ZX":
                zombies.add(process.pid)
    found: list[NodeProcess] = []
    waiting = [root]
    while waiting:
        below = children[waiting.pop()]
        found += [process for process in below if process.pid not in zombies]
        waiting += [process.pid for process in below]
    return found


def kill_tree(root: int, *, include_root: bool, timeout_s: float = 10) -> None:
    """Kills everything below ``root`` and returns when nothing of it lives.

    Raises:
        TimeoutError: something is still there after ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    while below := descendants(root):
        for process in below:
            _kill(process.pid)
        if time.monotonic() > deadline:
            raise TimeoutError(f"still alive {timeout_s} s after SIGKILL: {below}")
        reap()
        time.sleep(0.005)  # the kernel tells nobody but the parent when a process has gone
    if include_root:
        _kill(root)
    reap()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _read(pid: int, name: str) -> str:
    try:
        return Path("/proc", str(pid), name).read_text(errors="replace", encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def create_switch(login_pid: int, address: str) -> None:
    """Makes the bridge, which is at the same time the login node's own address."""
    _ip(login_pid, "link", "add", "switch", "type", "bridge")
    _add_address(login_pid, address, "switch")
    _ip(login_pid, "link", "set", "switch", "up")


def connect_node(login_pid: int, node_pid: int, index: int, address: str) -> None:
    """Lays a cable from node ``index`` to the switch."""
    cable = _cable(index)
    _ip(login_pid, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(node_pid))
    _ip(login_pid, "link", "set", cable, "master", "switch", "up")
    _add_address(node_pid, address, "eth0")
    _ip(node_pid, "link", "set", "eth0", "up")


def set_link(login_pid: int, index: int, *, up: bool) -> None:
    """Heals or cuts the cable of node ``index``; no connection is closed, packets just stop."""
    _ip(login_pid, "link", "set", _cable(index), "up" if up else "down")


def _add_address(pid: int, address: str, device: str) -> None:
    # nodad: an address of IPv6 can be used only after a second in which nobody objected to it.
    words = [f"{address}/64", "nodad"] if ":" in address else [f"{address}/16"]
    _ip(pid, "address", "add", *words, "dev", device)


def _cable(index: int) -> str:
    return f"node{index}"


def _ip(pid: int, *arguments: str) -> None:
    subprocess.run(["nsenter", "--target", str(pid), "--net", "ip", *arguments], check=True)

"""What the checks of one node know: the run, the node, and who its peers are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from launcher.config.schema import Config
from launcher.layout import Layout, Node


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckContext:
    """One node before the start."""

    config: Config
    layout: Layout
    node: Node
    run_dir: Path
    attempt_dir: Path
    model_path: Path | None
    """The model's directory; None if the run makes its own."""

    address: str
    """This node's address, as its peers reach it."""

    scratch: Path
    """Directory on this node's own disk."""

    is_simulated: bool
    """The nodes are processes of one machine; their names do not resolve."""


def peers_of(node_rank: int, nodes: int) -> list[int]:
    """Ranks that a node checks: node 0, its neighbour, and one far away; never more, however many nodes there are.

    Every node is checked by two others at least, which distinguishes a bad node from a bad observer.
    """
    wanted = [0, (node_rank + 1) % nodes, (node_rank + max(2, nodes // 2)) % nodes]
    return sorted(set(wanted) - {node_rank})


def network_stack() -> str:
    """Identifies the network namespace of this process: two nodes that share it can connect over the loopback."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot}:{Path('/proc/self/ns/net').stat().st_ino}"
    except OSError:
        return f"unknown:{os.uname().nodename}"


ALONE = ("gpus", "cpus", "shm", "memlock", "nofile", "disk", "model", "ports", "ptrace", "slurm")
"""Checks that a node makes by itself."""

BETWEEN = ("names", "connect", "canary", "clock", "versions")
"""Checks that take two nodes."""

NAMES = (*ALONE, *BETWEEN)
"""What ``preflight.skip`` may hold, and what tables and events call the checks."""

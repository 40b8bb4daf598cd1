"""The fault matrix on a SLURM that it makes on this machine, as root: ``python -m tests.chaos``.

The arguments are those of ``python -m launcher.testing.chaos``, which works with the SLURM of the environment.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from launcher.testing.chaos.__main__ import run_program
from launcher.testing.chaos.cluster import NODE_ACTIONS, ChaosCluster
from launcher.testing.chaos.processes import processes_of, shared_memory
from tests.slurm_cluster.cluster import SlurmCluster

NODES = "rack[0-1]n[01-06]"


class LocalChaosCluster(ChaosCluster):
    """A SLURM on this machine, each node with a name, ``/dev/shm`` and network of its own; ends with this process."""

    needs_nodes_for_leaks = False

    def __init__(self, small_disk: Path) -> None:
        super().__init__(dict.fromkeys((*NODE_ACTIONS, "down", "resume"), ""), "urgent", small_disk)
        small_disk.mkdir(parents=True, exist_ok=True)
        # Before the nodes are made: each gets a copy of the mounts that are there then.
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(small_disk)], check=True)
        self._lock = threading.Lock()
        self._forgotten: set[str] = set()
        self._cluster = SlurmCluster(NODES, isolation="net", slurmd_timeout_s=10, message_timeout_s=5)
        self._cluster.start()

    @property
    def login(self) -> list[str]:
        """On the login node of that cluster, in whatever directory this process is."""
        return self._cluster.login

    @property
    def env(self) -> dict[str, str]:
        """Turned to that cluster."""
        return self._cluster.env

    def do(self, action: str, node: str) -> None:
        """Does what an action names, by the means of that cluster."""
        cluster = self._cluster
        if action == "down":
            self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=faults")
            return
        if action == "resume":
            self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)  # it may be up again
            return
        with self._lock:
            if action == "kill_slurmd":
                os.kill(cluster.slurmd_pid(node), 9)
            else:
                actions = {
                    "crash": cluster.crash_node,
                    "boot": cluster.start_node,
                    "start_slurmd": cluster.start_slurmd,
                    "cut": cluster.cut,
                    "heal": cluster.heal,
                }
                actions[action](node)

    def forget(self, leaks: Sequence[str]) -> None:
        """What one run left is not taken for what the next one on the same node leaves."""
        self._forgotten.update(leaks)

    def leaks(self, run_dir: Path, nodes: Sequence[str]) -> list[str]:
        """All nodes are processes of this machine, those that were cut off, too."""
        found = processes_of(run_dir)
        assert self._cluster.directory is not None
        for node in nodes:
            if self._cluster.node_processes(node):
                continue  # another run is there by now, or one of those above
            pid = int((self._cluster.directory / "nodes" / node).read_text(encoding="utf-8"))
            found += [f"{node}: {text}" for text in shared_memory(Path(f"/proc/{pid}/root/dev/shm"))]
        return [text for text in found if text not in self._forgotten]

    def close(self) -> None:
        """Ends it."""
        self._cluster.stop()
        if self.small_disk is not None:
            subprocess.run(["umount", "--lazy", str(self.small_disk)], check=False)


if __name__ == "__main__":
    run_program(LocalChaosCluster)

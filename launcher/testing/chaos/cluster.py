"""The SLURM on which faults are injected."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.common.errors import LauncherError
from launcher.submit.cluster import job_environment

NODE_ACTIONS = ("crash", "boot", "kill_slurmd", "start_slurmd", "cut", "heal")
CALL_TIMEOUT_S = 60.0
LEAKS = (sys.executable, "-m", "launcher.testing.chaos.processes", "leaks")
LEAKS_TIMEOUT_S = 600.0
"""For nodes to come up again, and for other runs on them to end."""


class ChaosCluster:
    """The SLURM of the environment. What takes more than a user's rights is done by commands that the user gives.

    Args:
        commands: shell commands by action, of :data:`NODE_ACTIONS` and ``down``, ``resume``; ``{node}`` is the node.
        urgent: partition whose jobs preempt those of the run.
        small_disk: directory on a filesystem that may be filled, seen by every node.
    """

    urgent: str | None
    small_disk: Path | None
    needs_nodes_for_leaks = True
    """Whether leaks are searched on the nodes themselves, which must be up for that."""

    def __init__(self, commands: Mapping[str, str], urgent: str | None, small_disk: Path | None) -> None:
        self._commands = commands
        self.urgent = urgent
        self.small_disk = small_disk

    def lacks(self, action: str) -> str | None:
        """What would have to be given for a fault; None if nothing."""
        if action == "preempt":
            return None if self.urgent else "--urgent"
        if action == "fill":
            return None if self.small_disk else "--small-disk"
        undone_by = {"crash": "boot", "kill_slurmd": "start_slurmd", "down": "resume", "cut": "heal"}
        needed = [action, undone_by[action]] if action in undone_by else []
        return ", ".join(f"--do {name}=..." for name in needed if name not in self._commands) or None

    @property
    def login(self) -> list[str]:
        """What to put before a command so that it runs where jobs are submitted."""
        return []

    @property
    def env(self) -> dict[str, str]:
        """The environment to submit from."""
        return job_environment()

    def run(self, *words: str, timeout_s: float = CALL_TIMEOUT_S, check: bool = True) -> str:
        """What a command of SLURM's prints.

        Raises:
            LauncherError: it failed.
        """
        done = subprocess.run(
            [*self.login, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=self.env,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise LauncherError(f"`{shlex.join(words)}` ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        return done.stdout

    def do(self, action: str, node: str) -> None:
        """Does something to a node."""
        command = self._commands[action].replace("{node}", shlex.quote(node))
        subprocess.run(["bash", "-c", command], check=True, timeout=CALL_TIMEOUT_S, env=self.env)

    def leaks(self, run_dir: Path, nodes: Sequence[str]) -> list[str]:
        """What is left of a run on its nodes: processes and shared memory, each as one line."""
        step = ["srun", f"--nodes={len(nodes)}", "--ntasks-per-node=1", f"--nodelist={','.join(nodes)}"]
        output = self.run(
            *step,
            sys.executable,
            "-m",
            "launcher.testing.chaos.processes",
            "leaks",
            str(run_dir),
            timeout_s=LEAKS_TIMEOUT_S,
        )
        return [text for line in output.splitlines() if line.startswith("[") for text in json.loads(line)]

    def forget(self, leaks: Sequence[str]) -> None:
        """Forgets leaks that have been reported."""

    def repair(self, nodes: Sequence[str], actions: Sequence[str]) -> None:
        """Undoes what was done to nodes."""
        inverse = {"crash": ["boot", "resume"], "kill_slurmd": ["start_slurmd"], "cut": ["heal"], "down": ["resume"]}
        for action in actions:
            for node in nodes:
                for word in inverse.get(action, []):
                    if word in self._commands:
                        self.do(word, node)

    def close(self) -> None:
        """Gives back what was made for the cluster."""

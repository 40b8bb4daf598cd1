"""Every node is a process of this machine, with an agent and a log of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from launcher.agent.node import LOCAL_HOSTNAMES, LOCAL_NODE_RANK
from launcher.clusters.base import Cluster, Job, Outcome, job_environment
from launcher.config.schema import Config
from launcher.control.keys import TOKEN_VARIABLE, new_token
from launcher.errors import LauncherError

KILL_AFTER_S = 30.0


class LocalCluster(Cluster):
    """Simulates the nodes of a run."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def check(self) -> list[str]:
        """Nothing that the configuration does not show."""
        return []

    def submit(self, run_dir: Path) -> LocalJob:
        """Starts one guard per node, all with one fresh token, which is nowhere but in their environment."""
        nodes = self._config.layout.nodes
        shared = {
            **job_environment(),
            TOKEN_VARIABLE: new_token(),
            LOCAL_HOSTNAMES: ",".join(f"local-{rank}" for rank in range(nodes)),
        }
        guards = [
            subprocess.Popen(
                [sys.executable, "-m", "launcher.agent.guard", str(run_dir)],
                stdin=subprocess.DEVNULL,
                env={**shared, LOCAL_NODE_RANK: str(rank)},
                # A session of its own: Ctrl-C reaches only the submitter, which passes it on in order.
                start_new_session=True,
            )
            for rank in range(nodes)
        ]
        return LocalJob(guards)


class LocalJob(Job):
    """The guards of a local run."""

    def __init__(self, guards: list[subprocess.Popen[bytes]]) -> None:
        self._guards = guards

    def is_alive(self) -> bool:
        """True while any node runs."""
        return any(guard.poll() is None for guard in self._guards)

    def wait(self, timeout_s: float) -> Outcome:
        """Node 0 answers for the job."""
        deadline = time.monotonic() + timeout_s
        for rank, guard in enumerate(self._guards):
            try:
                guard.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired as error:
                raise LauncherError(f"Node {rank} (pid {guard.pid}) has not ended after {timeout_s:g} s.") from error
        codes = [guard.returncode for guard in self._guards]
        worst = codes[0] or next((code for code in codes if code), 0)
        return Outcome(exit_code=worst, text="completed" if worst == 0 else f"exit code {worst}")

    def cancel(self) -> None:
        """SIGTERM to each node; SIGKILL to a guard that ignores it, whose agent then ends by itself."""
        for guard in self._guards:
            if guard.poll() is None:
                guard.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + KILL_AFTER_S
        for guard in self._guards:
            try:
                guard.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                guard.kill()

"""The interface of a cluster and of its jobs; and the local cluster, whose nodes are processes of this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import launcher
from launcher.common.env import LAUNCHER_ATTEMPT, LAUNCHER_LOCAL_HOSTNAMES, LAUNCHER_LOCAL_NODE_RANK, LAUNCHER_TOKEN
from launcher.common.errors import LauncherError
from launcher.common.keys import new_token
from launcher.common.procfs import start_of
from launcher.common.run_dir import claim
from launcher.config.schema import Config
from launcher.layout.environment import is_protected
from launcher.slurm.client import KEPT as SLURM_KEPT
from launcher.slurm.client import is_slurm_variable
from launcher.snapshot.record import code_location

KEPT = frozenset({*SLURM_KEPT, "CUDA_VISIBLE_DEVICES"})
"""SLURM's configuration and credentials; and which GPUs of this machine may be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome:
    """How a job ended, by its cluster's account."""

    exit_code: int
    """0 only for success."""

    text: str
    """As the cluster calls it: ``COMPLETED``, ``TIMEOUT``, ``exit code 1``."""


class Job(ABC):
    """A submitted run."""

    job_id: str | None = None

    @abstractmethod
    def is_alive(self) -> bool:
        """False once nothing of the job runs or waits any more. Quick, and never more often than the cluster likes."""

    @abstractmethod
    def wait(self, timeout_s: float) -> JobOutcome:
        """Waits until the job has ended.

        Raises:
            LauncherError: it has not after ``timeout_s``.
        """

    @abstractmethod
    def cancel(self) -> None:
        """Requests the end of the job, and returns without waiting for it."""

    @abstractmethod
    def stop(self) -> None:
        """Requests a checkpoint and the end of the job, and returns without waiting for it."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """What another process needs to find the job again, as JSON; kept in the run directory."""

    @abstractmethod
    def logs(self) -> list[Path]:
        """Where the cluster itself writes, for a job that ended before it had its own logs."""


class Cluster(ABC):
    """Takes runs."""

    @abstractmethod
    def check(self) -> list[str]:
        """Problems that only this cluster can know, before anything is created."""

    @abstractmethod
    def submit(self, run_dir: Path) -> Job:
        """Hands over a run directory that is complete.

        Raises:
            SubmissionError: it was refused; nothing is queued.
        """


def job_environment(run_dir: Path | None = None) -> dict[str, str]:
    """The environment that a job starts from: this process's, so that it finds the same programs and packages.

    Without what an enclosing job, run or torchrun would leak into the new one. On ``PYTHONPATH`` is the code of the run
    in ``run_dir``; without one, or with ``snapshot=false``, this package's folder, so that a checkout works from any
    directory.
    """
    environ = {name: value for name, value in os.environ.items() if name in KEPT or not _is_foreign(name)}
    place = code_location(run_dir) if run_dir is not None else None
    if place is not None:
        return place.environment(environ)
    home = str(Path(launcher.__file__).parent.parent)
    if home not in sysconfig.get_paths().values():
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [home, environ.get("PYTHONPATH")]))
    return environ


def _is_foreign(name: str) -> bool:
    return is_protected(name) or is_slurm_variable(name)


KILL_AFTER_S = 60.0
LOCAL_POLL_S = 0.05


class LocalCluster(Cluster):
    """Simulates the nodes of a run."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def check(self) -> list[str]:
        """Nothing that the configuration does not show."""
        return []

    def submit(self, run_dir: Path) -> LocalJob:
        """Starts one shim per node, all with one fresh token, which is nowhere but in their environment."""
        nodes = self._config.layout.nodes + self._config.layout.spares
        place = code_location(run_dir)
        shared = {
            **job_environment(run_dir),
            LAUNCHER_TOKEN: new_token(),
            LAUNCHER_ATTEMPT: str(claim(run_dir)),
            LAUNCHER_LOCAL_HOSTNAMES: ",".join(f"local-{rank}" for rank in range(nodes)),
        }
        shims = [
            subprocess.Popen(
                [sys.executable, "-m", "launcher.node.shim", str(run_dir), "--parent", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                cwd=place.directory if place is not None else None,
                env={**shared, LAUNCHER_LOCAL_NODE_RANK: str(rank)},
                # In a new session, so that Ctrl-C reaches only the submitter, which forwards it.
                start_new_session=True,
            )
            for rank in range(nodes)
        ]
        return LocalJob(shims)


class LocalJob(Job):
    """The shims of a local run."""

    def __init__(self, shims: list[subprocess.Popen[bytes]]) -> None:
        self._shims = shims
        self._cancelled: float | None = None

    def is_alive(self) -> bool:
        """True while any node runs. The run decides what follows the loss of a node; without node 0 there is no run."""
        running = [shim for shim in self._shims if shim.poll() is None]
        if running and self._cancelled is None and self._shims[0].returncode:
            self.cancel()
        if self._cancelled is not None and time.monotonic() - self._cancelled > KILL_AFTER_S:
            for shim in running:
                shim.kill()
        return bool(running)

    def wait(self, timeout_s: float) -> JobOutcome:
        """The exit code of node 0 is the job's."""
        deadline = time.monotonic() + timeout_s
        while self.is_alive():
            if time.monotonic() > deadline:
                pids = ", ".join(str(shim.pid) for shim in self._shims if shim.returncode is None)
                raise LauncherError(f"Nodes of the run have not ended after {timeout_s:g} s: processes {pids}.")
            time.sleep(LOCAL_POLL_S)
        worst = self._shims[0].returncode
        if worst < 0:
            return JobOutcome(exit_code=128 - worst, text=f"signal {-worst} ({signal.Signals(-worst).name})")
        return JobOutcome(exit_code=worst, text="completed" if worst == 0 else f"exit code {worst}")

    def cancel(self) -> None:
        """SIGTERM to each node; SIGKILL, long after, to a shim that ignores it, whose agent then ends by itself."""
        self._cancelled = time.monotonic()
        for shim in self._shims:
            if shim.poll() is None:
                shim.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """SIGUSR2 to each node."""
        for shim in self._shims:
            if shim.poll() is None:
                shim.send_signal(signal.SIGUSR2)

    def record(self) -> dict[str, Any]:
        """The shims, in the order of their nodes, on this host."""
        started = [(shim.pid, start_of(shim.pid)) for shim in self._shims]
        shims = [{"pid": pid, "start": start} for pid, start in started if start is not None]
        return {"host": socket.gethostname(), "shims": shims}

    def logs(self) -> list[Path]:
        """None: shims write to the submitter's own output."""
        return []

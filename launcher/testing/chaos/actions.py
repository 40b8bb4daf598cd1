"""What each fault does to a run, and when it was injected."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from launcher.common.errors import LauncherError
from launcher.testing.chaos.cases import Case
from launcher.testing.chaos.cluster import ChaosCluster
from launcher.testing.chaos.observe import ObservedRun

INJECT_TIMEOUT_S = 240.0
CUT_S = 4.0
"""How long a network is cut that heals: less than a lease."""

FULL_S = 8.0
"""How long a disk is full that is emptied again."""

TWICE_S = 0.5
SIGNALS = {"kill": "KILL", "stop": "STOP"}


@dataclass(slots=True, kw_only=True)
class FaultInjector:
    """Injects faults into one run.

    Args:
        go: a file that all nodes see and that does not exist.
        job_id: of the run.
    """

    case: Case
    cluster: ChaosCluster
    observed: ObservedRun
    job_id: str
    go: Path
    nodes: list[str] = field(default_factory=list)
    """Nodes to which something was done that has to be undone."""

    _armed: subprocess.Popen[str] | None = None
    _later: list[threading.Timer] = field(default_factory=list)

    def arm(self) -> None:
        """Prepares the injection, so that it happens without delay; the target exists."""
        if self.case.action in SIGNALS:
            self._armed = self._injector(str(self.go))

    def inject(self) -> float:
        """Injects the fault; when that was, in unix seconds.

        Raises:
            LauncherError: it could not be done.
        """
        if self.case.action in SIGNALS:
            if self._armed is None:
                self._armed = self._injector()
            else:
                self.go.touch()
            try:
                out, error = self._armed.communicate(timeout=INJECT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._armed.kill()
                raise LauncherError(f"the program that was to {self.case.name} did not end") from None
            if not out.strip():
                raise LauncherError(f"no target: {error[-300:]}")
            return float(out.split()[0])
        before = time.time()
        actions: dict[str, Callable[[], object]] = {
            "usr2": self._usr2,
            "requeue": lambda: self.cluster.run("scontrol", "requeue", self.job_id),
            "scancel": lambda: self.cluster.run("scancel", self.job_id),
            "preempt": self._preempt,
            "fill": self._fill,
        }
        if self.case.action in actions:
            actions[self.case.action]()
        else:
            self._do_to_node()
        return before

    def undo(self) -> None:
        """Repairs what was done; does nothing when called again."""
        for timer in self._later:
            timer.join()
        if self.cluster.small_disk is not None and self.case.action == "fill":
            self._filler.unlink(missing_ok=True)
        self.cluster.repair(self.nodes, [self.case.action])
        self.nodes.clear()
        if self._armed is not None and self._armed.poll() is None:
            self._armed.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._armed.communicate(timeout=10)

    def _injector(self, *go: str) -> subprocess.Popen[str]:
        started = self.observed.started(self.case.target)
        if started is None:
            raise LauncherError(f"{self.case.target} was not started")
        words = ["srun", "--overlap", f"--jobid={self.job_id}", f"--nodelist={self._host()}", "--nodes=1", "--ntasks=1"]
        words += ["--mem=0", sys.executable, "-m", "launcher.testing.chaos.processes", "signal"]
        words += [str(self.observed.run_dir), str(started[1].pid), self.case.argument]
        return subprocess.Popen(
            [*self.cluster.login, *words, SIGNALS[self.case.action], *go],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.cluster.env,
            encoding="utf-8",
            errors="replace",
        )

    def _host(self) -> str:
        started = self.observed.started(self.case.target)
        if started is None:
            return self.observed.hostname(0)
        attempt, process = started
        return self.observed.hostname(process.node_rank or 0, attempt)

    def _do_to_node(self) -> None:
        host = self._host()
        self.nodes.append(host)
        self.cluster.do(self.case.action, host)
        if self.case.argument == "heal":
            self._after(CUT_S, lambda: self.cluster.do("heal", host))

    def _usr2(self) -> None:
        self.cluster.run("scancel", "--signal=USR2", self.job_id)
        if self.case.argument == "twice":
            time.sleep(TWICE_S)
            self.cluster.run("scancel", "--signal=USR2", self.job_id)

    def _preempt(self) -> None:
        nodes = self.cluster.run("squeue", "--noheader", "--jobs", self.job_id, "--format=%N").strip()
        count = len(self.cluster.run("scontrol", "show", "hostnames", nodes).split())
        where = [f"--partition={self.cluster.urgent}", f"--nodelist={nodes}", f"--nodes={count}", "--exclusive"]
        self.cluster.run("sbatch", *where, "--wrap=sleep 1", "--output=/dev/null")

    @property
    def _filler(self) -> Path:
        assert self.cluster.small_disk is not None
        return self.cluster.small_disk / "filler"

    def _fill(self) -> None:
        with self._filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        with self._filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(64))
        if self.case.argument == "free":
            self._after(FULL_S, lambda: self._filler.unlink(missing_ok=True))

    def _after(self, seconds: float, action: Callable[[], object]) -> None:
        timer = threading.Timer(seconds, action)
        self._later.append(timer)
        timer.start()

"""A run on a real SLURM that ``python -m launcher`` follows, attempt after attempt."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.integration.jobs.launched import ROOT
from tests.integration.jobs.logged import read_events, select
from tests.slurm_cluster.cluster import SlurmCluster

START_S = 150
"""Longest wait for an attempt's next step: the requeue, imports and an engine that starts beside it on two cores."""


def saving_program(steps: int, step_s: float = 0.3, ballast_mb: int = 100) -> str:
    """``trainer.command`` of a trainer that saves and resumes."""
    words = ["python", "-m", "tests.integration.jobs.stopping_trainer", str(steps), str(step_s), str(ballast_mb)]
    return f"trainer.command={json.dumps(words)}"


class Run:
    """A run that is followed by ``python -m launcher``, attempt after attempt."""

    def __init__(self, cluster: SlurmCluster, folder: Path, *overrides: str) -> None:
        self.cluster = cluster
        self._output = folder / "output.txt"
        words = [f"output_dir={folder / 'runs'}", "+cluster=slurm", "cluster.wait=true", "cluster.mem=4G", *overrides]
        with self._output.open("w") as output:
            self.launcher = subprocess.Popen(
                [*cluster.login, sys.executable, "-m", "launcher", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=cluster.env | {"PYTHONPATH": str(ROOT)},
            )
        self.wait(lambda: "run directory" in self.output, "a run directory")

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def job_id(self) -> str:
        return self.output.partition("submitted job ")[2].split()[0]

    @property
    def path(self) -> Path:
        return Path(self.output.partition("run directory ")[2].split()[0])

    def events(self, attempt: int) -> list[dict[str, Any]]:
        return read_events(self.path / "attempts" / str(attempt))

    def find(self, attempt: int, event: str, **fields: Any) -> list[dict[str, Any]]:
        return select(self.events(attempt), event, **fields)

    def end(self, attempt: int) -> str:
        return str(json.loads((self.path / "attempts" / str(attempt) / "end.json").read_text())["end"])

    def wait(self, is_there: Callable[[], bool], what: str, timeout_s: float = START_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_there():
            over = self.launcher.poll() is not None or time.monotonic() > deadline
            assert not over, f"no {what}:\n{self.output}\n{self.logs()}"
            time.sleep(0.05)

    def wait_steps(self, attempt: int, count: int) -> None:
        self.wait(lambda: len(self.find(attempt, "step")) >= count, f"step {count} of attempt {attempt}")

    def logs(self) -> str:
        logs = sorted(self.path.glob("attempts/*/logs/[at]*.log")) if "run directory" in self.output else []
        return "\n".join(f"== {log}\n" + "\n".join(log.read_text().splitlines()[-15:]) for log in logs)

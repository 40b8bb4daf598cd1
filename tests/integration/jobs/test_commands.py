"""The commands on a real SLURM, as somebody uses them who submits a job, looks at it, goes into it and ends it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.jobs.launched import ROOT
from tests.integration.jobs.test_slurm_job import SLEEPS, submit
from tests.slurm_cluster.cluster import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.engine]
DEADLINE_S = 90
TICKS = "trainer.command=[sh,-c,'echo rank $RANK is here; while :; do sleep 1; done']"


class Person:
    """Runs commands on the login node, in a folder that holds ``runs``."""

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self._cluster = cluster
        self._where = ["--output-dir", str(folder / "runs")]

    def words(self, command: str, *words: str) -> list[str]:
        """The command line."""
        return [sys.executable, "-m", "launcher", command, *self._where, *words]

    def run(self, command: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs one to its end."""
        return self._cluster.run(self.words(command, *words), timeout_s=120, check=False, PYTHONPATH=str(ROOT))

    def data(self, command: str, *words: str) -> Any:
        """What one prints with ``--json``."""
        done = self.run(command, *words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @contextmanager
    def begin(self, command: str, *words: str) -> Iterator[subprocess.Popen[str]]:
        """Starts one that goes on, until the block ends."""
        with subprocess.Popen(
            [*self._cluster.login, *self.words(command, *words)],
            env={**self._cluster.env, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()


def wait(predicate: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not predicate():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.5)


def test_a_job_from_its_submission_to_its_end(slurm: SlurmCluster, tmp_path: Path, model: Path) -> None:
    person = Person(slurm, tmp_path)
    later = submit(slurm, tmp_path, f"model.path={model}", SLEEPS, "name=later", "+cluster.sbatch.begin=now+1hour")
    now = submit(slurm, tmp_path, f"model.path={model}", TICKS, "name=now", "layout.nodes=3")
    assert now.code == later.code == 0, now.output + later.output
    with person.begin("logs", "now", "-f", "--role", "trainer") as follower:
        assert follower.stdout is not None and follower.stderr is not None
        lines = sorted(re.sub(r"^trainer-\d+ \| ", "", follower.stdout.readline()) for _ in range(2))
        assert lines == ["rank 0 is here\n", "rank 1 is here\n"]

        listed = {run["job_id"]: run for run in person.data("runs")}
        assert (listed[later.job_id]["state"], listed[later.job_id]["job_state"]) == ("queued", "PENDING")
        assert (listed[now.job_id]["state"], listed[now.job_id]["nodes"]) == ("running", 3)

        shown = person.run("status", later.job_id).stdout
        assert f"{later.job_id}: PENDING, BeginTime, expected to start" in shown
        status = person.data("status", "now")
        hostnames = [node["hostname"] for node in status["nodes_up"].values()]
        assert hostnames == ["rack0n01", "rack0n02", "rack1n01"]
        assert status["replicas"][0]["state"] in ("starting", "ready")

        inside = person.run("attach", "now", "--node", "1", "--", "sh", "-c", "hostname; echo $RANK; exit 3")
        assert (inside.returncode, inside.stdout.split()) == (3, ["rack0n02", "1"]), inside.stderr
        inside = person.run("attach", now.job_id, "--role", "inference", "--", "sh", "-c", "hostname; env")
        assert inside.stdout.split()[0] == "rack1n01" and "LAUNCHER_ROLE=inference" in inside.stdout
        assert "LAUNCHER_TOKEN" not in inside.stdout
        assert "node 2 (rack1n01): inference node 0" in person.run("inspect", "rack1n01", "--run", "now").stdout

        done = person.run("cancel", "now", later.job_id)
        assert done.returncode == 0, done.stderr
        assert f"ended job {now.job_id}: CANCELLED" in done.stdout
        assert f"{later.run_dir.name} was queued; ended job {later.job_id}: CANCELLED" in done.stdout
        slurm.wait_empty()
        assert follower.wait(60) == 0
        assert f"{now.run_dir.name}: cancelled" in follower.stderr.read()
    again = person.run("cancel", now.job_id)
    assert (again.returncode, again.stdout) == (0, f"{now.run_dir.name} had ended: cancelled\n")
    assert {run["state"] for run in person.data("runs")} == {"cancelled"}
    assert "has ended (cancelled)" in person.run("attach", "now").stderr

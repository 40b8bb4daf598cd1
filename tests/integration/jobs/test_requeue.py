"""Time limits, preemptions and requeues on a real SLURM: the run goes on where it was, with no manual step."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.testing.slurm_cluster.cluster import SlurmCluster
from tests.integration.jobs.launched import ROOT

pytestmark = [pytest.mark.slurm, pytest.mark.engine]

STEPS = 40
START_S = 150
"""Longest wait for an attempt's next step: the requeue, imports and an engine that starts beside it on two cores."""


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
        path = self.path / "attempts" / str(attempt) / "events.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def find(self, attempt: int, event: str, **fields: Any) -> list[dict[str, Any]]:
        wanted = {"event": event, **fields}.items()
        return [e for e in self.events(attempt) if wanted <= e.items()]

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


def test_a_run_resumes_from_attempt_to_attempt(slurm: SlurmCluster, tmp_path: Path, model: Path) -> None:
    """Asked to stop, again and again while it saves; preempted; requeued by an administrator; then it finishes."""
    program = ["python", "-m", "tests.integration.jobs.stopping_trainer", str(STEPS), "0.3", "100"]
    run = Run(
        slurm,
        tmp_path,
        f"model.path={model}",
        "layout.nodes=3",
        "checkpoint.every_steps=5",
        "cluster.exclusive=true",
        f"trainer.command={json.dumps(program)}",
    )
    try:
        # A stop, asked for three times: before, while and after the checkpoint is written.
        run.wait_steps(1, 7)
        slurm.run(["scancel", "--signal=USR2", run.job_id])
        run.wait(lambda: bool(run.find(1, "stopping")), "stopping")
        at = len(run.find(1, "checkpoint", state="begin"))
        run.wait(lambda: len(run.find(1, "checkpoint", state="begin")) > at or bool(run.find(1, "requeued")), "save")
        slurm.run(["scancel", "--signal=USR2", run.job_id])
        run.wait(lambda: bool(run.find(1, "finished")), "end")
        assert run.find(1, "stopping") == run.find(1, "stopping", reason="request")
        assert len(run.find(1, "stopping")) == 1
        assert run.find(1, "finished")[0]["outcome"] == "requeued"
        assert run.end(1) == "stopped"
        # A preemption: SLURM itself queues the job again.
        run.wait_steps(2, 3)
        (resumed,) = run.find(2, "resumed")
        assert resumed["step"] == run.find(1, "step")[-1]["step"] == run.find(2, "step")[0]["step"] - 1
        urgent = ["--partition=urgent", "--nodes=4", "--exclusive", "--wrap=sleep 1", "--output=/dev/null"]
        slurm.run(["sbatch", *urgent])
        run.wait_steps(3, 3)
        assert run.end(2) == "preempted"
        assert run.find(2, "stopping")[0]["reason"] in ("preemption", "requeue")
        # An administrator's requeue.
        slurm.run(["scontrol", "requeue", run.job_id])
        assert run.launcher.wait(2 * START_S) == 0, run.output + run.logs()
        assert run.end(3) == "preempted"
    finally:
        run.launcher.kill()
        run.launcher.wait()
        slurm.cancel_all()
    random.seed(7)
    expected = 0.0
    import torch

    weight = torch.zeros(1)
    for _ in range(STEPS):
        weight += random.random()
    expected = float(weight)
    # No step was lost, none was done twice in what counts.
    assert json.loads((run.path / "result.json").read_text()) == {"weight": expected.hex(), "attempt": "4"}
    assert run.find(4, "finished")[0]["outcome"] == run.end(4) == "completed"
    assert slurm.job_state(run.job_id) == "COMPLETED"
    slurm.wait_empty()
    assert "attempt 4" in run.output


def test_a_job_that_has_lost_its_first_node_is_queued_again(slurm: SlurmCluster, tmp_path: Path, model: Path) -> None:
    """SLURM itself would end it (a node that is set down) or let it run on, without its script (one that is silent)."""
    program = ["python", "-m", "tests.integration.jobs.stopping_trainer", str(STEPS), "0.3", "100"]
    run = Run(slurm, tmp_path, f"model.path={model}", "layout.nodes=3", f"trainer.command={json.dumps(program)}")
    lost = ""
    try:
        run.wait(lambda: bool(run.find(1, "process", role="inference", state="started")), "engine")
        lost = str(run.find(1, "node_up", node_rank=0)[0]["hostname"])
        slurm.run(["scontrol", "update", f"nodename={lost}", "state=down", "reason=test"])
        run.wait(lambda: bool(run.find(2, "process", role="inference", state="started")), "second attempt")
        assert run.find(2, "node_up", node_rank=0)[0]["hostname"] != lost
        assert run.find(1, "finished")[0]["outcome"] == "requeued"
        assert run.end(1) == "lost"
    finally:
        run.launcher.kill()
        run.launcher.wait()
        slurm.cancel_all()
        if lost:
            slurm.run(["scontrol", "update", f"nodename={lost}", "state=resume"])
    slurm.wait_empty()

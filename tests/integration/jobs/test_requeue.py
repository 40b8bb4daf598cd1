"""Time limits, preemptions and requeues on a real SLURM: the run goes on where it was, with no manual step."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.jobs.followed import START_S, Run, saving_program
from tests.slurm_cluster.cluster import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.engine]

STEPS = 40
SLOW_S = 6
"""How long SLURM's commands take on the nodes of a site with a busy controller: longer than a stop can wait for them,
and so long that the job may be killed before their second answer."""


def slow_commands(folder: Path) -> str:
    """``cluster.setup`` that puts slow ``scontrol`` and ``squeue`` in front of the real ones, on the nodes alone."""
    folder.mkdir()
    for name in ("scontrol", "squeue"):
        script = folder / name
        script.write_text(f'#!/bin/bash\nsleep {SLOW_S}\nPATH=${{PATH#*:}} exec {name} "$@"\n')
        script.chmod(0o755)
    return f"cluster.setup=['export PATH={folder}:$PATH']"


@contextmanager
def following(cluster: SlurmCluster, folder: Path, model: Path, *overrides: str) -> Iterator[Run]:
    """A run of three nodes with checkpoints, which is over when the block is."""
    shape = (f"model.path={model}", "layout.nodes=3", "checkpoint.every_steps=5", "cluster.exclusive=true")
    run = Run(cluster, folder, *shape, saving_program(STEPS), *overrides)
    try:
        yield run
    finally:
        run.launcher.kill()
        run.launcher.wait()
        cluster.cancel_all()


def check_resumed_and_completed(run: Run, attempt: int) -> None:
    """The attempt went on where the one before had saved; no step was lost, none was done twice in what counts."""
    assert run.launcher.wait(2 * START_S) == 0, run.output + run.logs()
    (resumed,) = run.find(attempt, "resumed")
    assert resumed["step"] == run.find(attempt, "step")[0]["step"] - 1
    random.seed(7)
    import torch

    weight = torch.zeros(1)
    for _ in range(STEPS):
        weight += random.random()
    expected = {"weight": float(weight).hex(), "attempt": str(attempt)}
    assert json.loads((run.path / "result.json").read_text()) == expected
    assert run.find(attempt, "finished")[0]["outcome"] == run.end(attempt) == "completed"
    assert run.cluster.job_state(run.job_id) == "COMPLETED"
    run.cluster.wait_empty()
    assert f"attempt {attempt}" in run.output


def test_a_stop_that_is_requested_again_and_again_saves_once(slurm: SlurmCluster, tmp_path: Path, model: Path) -> None:
    """Before, and while the checkpoint is written."""
    with following(slurm, tmp_path, model) as run:
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
        check_resumed_and_completed(run, 2)
    assert run.end(1) == "stopped"
    assert run.find(2, "resumed")[0]["step"] == run.find(1, "step")[-1]["step"]


def preempt(cluster: SlurmCluster) -> None:
    """Queues a job of a higher priority that needs every node for a moment."""
    urgent = ["--partition=urgent", "--nodes=4", "--exclusive", "--wrap=sleep 1", "--output=/dev/null"]
    cluster.run(["sbatch", *urgent])


def test_a_preempted_run_resumes(slurm: SlurmCluster, tmp_path: Path, model: Path) -> None:
    """SLURM itself queues the job again."""
    with following(slurm, tmp_path, model) as run:
        run.wait_steps(1, 7)
        preempt(slurm)
        run.wait_steps(2, 3)
        assert run.end(1) == "preempted"
        assert run.find(1, "stopping")[0]["reason"] in ("preemption", "requeue")
        check_resumed_and_completed(run, 2)


def test_a_preemption_counts_as_one_where_slurm_answers_late(slurm: SlurmCluster, tmp_path: Path, model: Path) -> None:
    """The stop begins before its reason is known; what is known at the end counts."""
    with following(slurm, tmp_path, model, slow_commands(tmp_path / "slow")) as run:
        run.wait_steps(1, 7)
        preempt(slurm)
        run.wait_steps(2, 3)
        assert run.end(1) == "preempted"
        check_resumed_and_completed(run, 2)
    assert run.end(1) == "preempted"


def test_an_administrators_requeue_resumes(slurm: SlurmCluster, tmp_path: Path, model: Path) -> None:
    with following(slurm, tmp_path, model) as run:
        run.wait_steps(1, 7)
        slurm.run(["scontrol", "requeue", run.job_id])
        check_resumed_and_completed(run, 2)
    assert run.end(1) == "preempted"


def test_a_job_that_has_lost_its_first_node_is_queued_again(slurm: SlurmCluster, tmp_path: Path, model: Path) -> None:
    """SLURM itself would end it (a node that is set down) or let it run on, without its script (one that is silent)."""
    run = Run(slurm, tmp_path, f"model.path={model}", "layout.nodes=3", saving_program(STEPS))
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

"""What was queued is what runs, and its secrets are nowhere: on a real SLURM."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.jobs.edited_program import Project, check_seen, files_with
from tests.jobs.launched import run_dir_of
from tests.slurm.cluster import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.engine]

SECRETS = {"WANDB_API_KEY": "wandb-0123456789abcdef", "SITE_PASS": "site-fedcba9876543210"}


def test_a_job_runs_the_code_that_was_there_when_it_was_queued(
    slurm: SlurmCluster, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path, SECRETS["WANDB_API_KEY"])
    monkeypatch.chdir(project.work)
    runs = tmp_path / "runs"
    words = ["+cluster=slurm", f"output_dir={runs}", "cluster.mem=4G", f"model.path={os.path.relpath(model)}"]
    command = ["trainer.command=[python,train.py]", "secrets=[SITE_PASS]", "+cluster.sbatch.hold=true"]
    environ = {**SECRETS, "PYTHONPATH": os.pathsep.join([str(project.home), str(project.repository.path)])}

    done = slurm.run([sys.executable, "-m", "launcher", *words, *command], timeout_s=120, check=False, **environ)
    assert done.returncode == 0, done.stdout + done.stderr
    job_id = done.stdout.partition("submitted job ")[2].split()[0]
    project.edit()
    slurm.run(["scontrol", "release", job_id])
    slurm.wait_job(job_id, timeout_s=180)

    run_dir = run_dir_of(done.stdout)
    check_seen(run_dir, SECRETS)
    assert files_with(runs, list(SECRETS.values())) == []
    assert not any(value in done.stdout + done.stderr for value in SECRETS.values())

"""What was queued is what runs, and its secrets are nowhere: on a real SLURM, and on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.jobs.edited_program import Project, check_seen, files_with
from tests.integration.jobs.launched import ROOT, run_dir_of
from tests.slurm_cluster.cluster import SlurmCluster

pytestmark = pytest.mark.engine

SECRETS = {"WANDB_API_KEY": "wandb-0123456789abcdef", "SITE_PASS": "site-fedcba9876543210"}


@pytest.mark.slurm
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

    # Once more, with another launcher, while the checkouts are still as wrong as they are.
    again = [sys.executable, "-m", "launcher", "replay", str(run_dir), "~cluster.sbatch.hold", "--json"]
    replay = slurm.run(again, timeout_s=120, check=False, **SECRETS, PYTHONPATH=str(ROOT))
    assert replay.returncode == 0, replay.stdout + replay.stderr
    new = json.loads(replay.stdout)
    assert new["differences"]["code"]["changed"] == ["package/__init__.py", "work/lib/helper.py", "work/train.py"]
    assert "M work/train.py" in replay.stderr
    slurm.wait_job(new["job_id"], timeout_s=180)
    check_seen(Path(new["run_dir"]), SECRETS)

    assert files_with(runs, list(SECRETS.values())) == []
    shown = done.stdout + done.stderr + replay.stdout + replay.stderr
    assert not any(value in shown for value in SECRETS.values())


def test_a_run_on_this_machine_does_the_same(tmp_path: Path, model: Path) -> None:
    project = Project(tmp_path, SECRETS["WANDB_API_KEY"])
    words = [f"output_dir={os.path.relpath(tmp_path / 'runs', project.work)}", f"model.path={model}"]
    environ = {**os.environ, **SECRETS, "PYTHONPATH": f"{project.home}{os.pathsep}{project.repository.path}"}
    command = [sys.executable, "-m", "launcher", *words, "trainer.command=[python,train.py]", "secrets=[SITE_PASS]"]
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            command, cwd=project.work, env=environ, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 60
        # The engine takes far longer from here to the start of the trainer than the edit does.
        while "run directory" not in output.read_text():
            assert process.poll() is None and time.monotonic() < deadline, output.read_text()
            time.sleep(0.02)
        (project.work / "train.py").write_text("raise SystemExit('edited')")
        assert process.wait(180) == 0, output.read_text()
    finally:
        process.terminate()
        process.wait(60)
    run_dir = run_dir_of(output.read_text())
    check_seen(run_dir.resolve(), SECRETS)
    assert files_with(tmp_path / "runs", list(SECRETS.values())) == []
    assert not any(value in output.read_text() for value in SECRETS.values())

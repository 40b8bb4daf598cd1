"""Job scripts of every kind on a real SLURM: two partitions in one job, and many runs in one array."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.clusters.arrays import submit_array
from launcher.config import compose
from launcher.layout import plan
from launcher.run_dir import create
from tests.jobs.submitted import submit
from tests.slurm.cluster import SlurmCluster
from tests.unit.golden_scripts import SCENARIOS, script_of

pytestmark = [pytest.mark.slurm]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_slurm_would_take_it(slurm: SlurmCluster, tmp_path: Path, scenario: str) -> None:
    text = script_of(scenario)
    # The site of these scripts has partitions and GPU types that this cluster has not.
    for theirs, ours in {"=gpu\n": "=batch\n", "=inference\n": "=urgent\n", "=h100:": "=", "=l40s:": "="}.items():
        text = text.replace(theirs, ours)
    (tmp_path / "job.sbatch").write_text(text)
    done = slurm.run(["sbatch", "--test-only", tmp_path / "job.sbatch"], check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.engine
def test_a_heterogeneous_job_runs_its_roles_in_two_partitions(slurm: SlurmCluster, tmp_path: Path, model: Path) -> None:
    """By name the nodes that infer come first; by rank they come last."""
    program = json.dumps(["python", "-m", "tests.jobs.ask_engines", str(tmp_path / "answers")])
    job = submit(
        slurm,
        tmp_path,
        *("cluster.wait=true", f"model.path={model}", "layout.nodes=3", f"trainer.command={program}"),
        *("cluster.partition=batch", "cluster.trainer.nodelist='rack1n[01-02]'", "cluster.trainer.cpus_per_task=3"),
        *("cluster.inference.partition=urgent", "cluster.inference.nodelist=rack0n02"),
    )
    assert job.code == 0, job.output
    shown = slurm.run(["squeue", "--noheader", "--states=all", f"--jobs={job.job_id}", "--format=%P|%N|%T"]).stdout
    assert shown.splitlines() == ["batch|rack1n[01-02]|COMPLETED", "urgent|rack0n02|COMPLETED"]
    up = sorted((e for e in job.events if e["event"] == "node_up"), key=lambda e: int(e["node_rank"]))
    assert [(e["hostname"], e["role"]) for e in up] == [
        ("rack1n01", "trainer"),
        ("rack1n02", "trainer"),
        ("rack0n02", "inference"),
    ]
    (answer,) = json.loads((tmp_path / "answers").read_text())
    assert answer["mine"] == 200
    slurm.wait_empty()


@pytest.mark.engine
def test_an_array_is_one_job_with_a_run_in_each_element(
    slurm: SlurmCluster, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in slurm.variables.items():
        monkeypatch.setenv(name, value)
    shape = ("layout.nodes=1", "layout.inference_nodes=0", "layout.gpus_per_node=2", "cluster.mem=4G")
    run_dirs = []
    for code in (0, 9, 0):
        program = f"trainer.command=[python,-c,'raise SystemExit({code})']"
        config = compose(["+cluster=slurm", f"output_dir={tmp_path}", f"model.path={model}", program, *shape])
        run_dirs.append(create(config, plan(config)))
    jobs = submit_array(run_dirs, parallel=2)
    first = str(jobs[0].job_id).partition("_")[0]
    assert [job.job_id for job in jobs] == [f"{first}_{index}" for index in range(3)]
    assert "ArrayTaskThrottle=2" in slurm.run(["scontrol", "show", "job", first]).stdout
    ends = [(outcome.text, outcome.exit_code) for outcome in [job.wait(120) for job in jobs]]
    assert ends == [("COMPLETED", 0), ("FAILED", 5), ("COMPLETED", 0)]
    for job, run_dir in zip(jobs, run_dirs, strict=True):
        events = [json.loads(line) for line in (run_dir / "attempts/1/events.jsonl").read_text().splitlines()]
        assert events[0]["job_id"] == job.job_id
        assert job.logs()[0].parent.parent == run_dir
        assert job.logs()[0].is_file()
        assert "#SBATCH --array=0-2%2" in (run_dir / "job.sh").read_text()
    slurm.wait_empty()

"""Job scripts of every kind on a real SLURM: two partitions in one job, many runs in one array, and by hand."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from launcher.config import compose
from launcher.layout import plan
from launcher.submit.job_array import submit_array
from launcher.submit.run_dir import create
from tests.integration.jobs.launched import ROOT
from tests.integration.jobs.submitted import submit
from tests.slurm_cluster.cluster import SlurmCluster
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
    program = json.dumps(["python", "-m", "tests.integration.jobs.ask_engines", str(tmp_path / "answers")])
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


def render(slurm: SlurmCluster, file: Path, *overrides: str) -> None:
    words = [sys.executable, "-m", "launcher", "render", "+cluster=slurm", "-o", str(file), "cluster.mem=4G"]
    done = slurm.run([*words, *overrides], PYTHONPATH=str(ROOT))
    assert done.stdout == f"wrote {file}\nnext:\n  sbatch {file}\n"


def by_hand(slurm: SlurmCluster, file: Path, folder: Path) -> str:
    """Submits a script from a bare shell in some directory; returns the job's id."""
    kept = {name: value for name, value in slurm.env.items() if name in ("PATH", "HOME", "SLURM_CONF")}
    shell = ["env", "-i", *(f"{name}={value}" for name, value in kept.items())]
    return slurm.run([*shell, "sbatch", f"--chdir={folder}", "--parsable", file]).stdout.strip()


def run_of(folder: Path, job_id: str) -> Path:
    (run_dir,) = (folder / "runs").glob(f"*-job{job_id}")
    return run_dir


@pytest.mark.engine
def test_a_rendered_script_submitted_by_hand_twice_gives_two_runs(
    slurm: SlurmCluster, tmp_path: Path, model: Path
) -> None:
    file = tmp_path / "job.sbatch"
    program = f"trainer.command=[python,{ROOT / 'tests/integration/jobs/plain_torchrun.py'},ranks]"
    render(slurm, file, f"output_dir={tmp_path / 'runs'}", f"model.path={model}", "layout.nodes=3", program)
    first = by_hand(slurm, file, tmp_path)
    # What a person would do in an editor: one node less, and a name.
    text = file.read_text()
    assert text.count("#SBATCH --nodes=3\n") == text.count("\n  nodes: 3\n") == 1
    file.write_text(
        text.replace("#SBATCH --nodes=3\n", "#SBATCH --nodes=2\n")
        .replace("\n  nodes: 3\n", "\n  nodes: 2\n")
        .replace("\nname: tiny\n", "\nname: edited\n")
    )
    second = by_hand(slurm, file, Path("/"))
    for job_id, name, nodes in ((first, "tiny", 3), (second, "edited", 2)):
        slurm.wait_job(job_id, timeout_s=120)
        run_dir = run_of(tmp_path, job_id)
        assert run_dir.name.startswith(f"{name}-")
        events = [json.loads(line) for line in (run_dir / "attempts/1/events.jsonl").read_text().splitlines()]
        assert events[-1]["outcome"] == "completed"
        assert len([event for event in events if event["event"] == "node_up"]) == nodes
        # The trainer's working directory is the run's own view of the code.
        assert len(json.loads((run_dir / "code" / "ranks").read_text())) == nodes - 1
        assert (tmp_path / f"job-{job_id}.out").read_text() == f"launcher: run directory {run_dir}\n"
        assert "#SBATCH --nodes" in (run_dir / "job.sh").read_text()
    slurm.wait_empty()


@pytest.mark.engine
def test_a_rendered_script_through_submitit_finds_its_run_again_after_a_requeue(
    slurm: SlurmCluster, tmp_path: Path, model: Path
) -> None:
    file = tmp_path / "job.sbatch"
    program = "import os, time; time.sleep(0 if 'SLURM_RESTART_COUNT' in os.environ else 600)"
    words = (
        f"output_dir={tmp_path / 'runs'}",
        f"model.path={model}",
        f"trainer.command={json.dumps(['python', '-c', program])}",
    )
    render(slurm, file, "--submitit", *words)
    job_id = by_hand(slurm, file, tmp_path)
    slurm.wait_job(job_id, ["RUNNING"])
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/attempts/1/logs/trainer-0000.log")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    slurm.run(["scontrol", "requeue", job_id])
    slurm.wait_job(job_id, timeout_s=120)
    run_dir = run_of(tmp_path, job_id)
    assert (run_dir / "attempts" / "2" / "events.jsonl").read_text().count('"outcome":"completed"') == 1
    assert (run_dir / "submitit" / f"{job_id}_0_result.pkl").is_file()
    slurm.wait_empty()

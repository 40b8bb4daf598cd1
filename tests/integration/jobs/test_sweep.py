"""Sweeps as a person starts them: on a real SLURM, interrupted at the worst moment, as an array, cancelled."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from launcher.config.metric import Metric
from launcher.sweep.ledger import Ledger
from launcher.sweep.status import run_statuses
from tests.integration.jobs.launched import ROOT, Launcher
from tests.slurm_cluster.cluster import ENDED, SlurmCluster

TRAINER = "trainer.command=[python,tests/integration/jobs/sweep_trainer.py,'${trainer.lr}']"
SLEEPS = 'trainer.command=[sleep,"600"]'
LRS = (0.1, 0.2, 0.3, 0.4)
SHAPES = ((2, 1), (3, 1), (3, 2))
KILLED = -9
FAILED_CODE = 5

# Submits, and then kills the command that waits for its answer: nobody ever hears the number of the job.
TREACHEROUS_SBATCH = """#!/bin/bash
{real} "$@"; code=$?
case "$*" in *--test-only*) exit $code;; esac
echo >> {count}
if [ "$(wc -l < {count})" -eq {nth} ]; then kill -KILL $PPID; fi
exit $code
"""


def sweep_words(folder: Path, model: Path, *words: str) -> list[str]:
    # No snapshots: what is tested here has nothing to do with them, and they would be of the whole repository.
    common = (f"output_dir={folder / 'runs'}", f"model.path={model}", "cluster.mem=4G", "snapshot=false")
    return [sys.executable, "-m", "launcher", "-m", "+cluster=slurm", *common, *words]


def sweep(cluster: SlurmCluster, command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    return cluster.run(command, timeout_s=240, check=False, PYTHONPATH=str(ROOT), **env)


def sweep_command(cluster: SlurmCluster, *words: str | Path) -> str:
    done = cluster.run([sys.executable, "-m", "launcher", "sweep", *words], timeout_s=120, PYTHONPATH=str(ROOT))
    return done.stdout


def sweep_dir(folder: Path) -> Path:
    (found,) = (folder / "runs" / "sweeps").iterdir()
    return found


def status(cluster: SlurmCluster, directory: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(sweep_command(cluster, "status", directory, "--json"))
    return found


def wait_ended(cluster: SlurmCluster, wanted: int, timeout_s: float = 200) -> None:
    deadline = time.monotonic() + timeout_s
    while sum(job.state in ENDED for job in cluster.jobs()) < wanted:
        assert time.monotonic() < deadline, cluster.jobs()
        time.sleep(0.3)


def treacherous_path(cluster: SlurmCluster, folder: Path, nth: int) -> str:
    """``PATH`` with an ``sbatch`` that kills its caller the ``nth`` time, after the job is queued."""
    bin_dir, path = folder / "bin", cluster.env["PATH"]
    bin_dir.mkdir()
    script = TREACHEROUS_SBATCH.format(real=shutil.which("sbatch", path=path), count=folder / "count", nth=nth)
    (bin_dir / "sbatch").write_text(script)
    (bin_dir / "sbatch").chmod(0o755)
    return f"{bin_dir}:{path}"


@pytest.fixture
def empty(slurm: SlurmCluster) -> SlurmCluster:
    """The shared cluster, with the number of its jobs before this test."""
    slurm.cancel_all()
    return slurm


@pytest.mark.slurm
def test_a_sweep_killed_in_the_middle_of_sbatch_is_finished_by_the_same_command(
    empty: SlurmCluster, tmp_path: Path, model: Path
) -> None:
    known = {job.job_id for job in empty.jobs()}
    values = [f"trainer.lr={','.join(map(str, LRS))}", TRAINER]
    zipped = [f"layout.nodes={','.join(str(n) for n, _ in SHAPES)}", "sweep.zip=[layout.nodes,layout.inference_nodes]"]
    shapes = [*zipped, f"layout.inference_nodes={','.join(str(n) for _, n in SHAPES)}"]
    command = sweep_words(tmp_path, model, *values, *shapes)

    first = sweep(empty, command, PATH=treacherous_path(empty, tmp_path, nth=len(LRS) + 1))
    assert first.returncode == KILLED, first.stdout + first.stderr
    assert len({job.job_id for job in empty.jobs()} - known) == len(LRS) + 1
    directory = sweep_dir(tmp_path)
    ledger = [json.loads(line) for line in (directory / "ledger.jsonl").read_text().splitlines()]
    assert Counter(line["record"] for line in ledger) == {"run": 12, "intent": 5, "job": 4}

    # The same command twice at once: one of them does the rest.
    again: list[subprocess.CompletedProcess[str]] = []
    threads = [threading.Thread(target=lambda: again.append(sweep(empty, command))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [done.returncode for done in again] == [0, 0], again
    said = [line for done in again for line in done.stdout.splitlines() if line.startswith("12 runs: ")]
    assert sum("7 submitted" in line for line in said) == 1, said
    jobs = {job.job_id for job in empty.jobs()} - known
    assert len(jobs) == 12

    wait_ended(empty, len(known) + 12)
    found = status(empty, directory)
    assert [run["state"] for run in found] == ["done"] * 12, found
    assert {run["job_id"] for run in found} == jobs
    assert len({run["run_dir"] for run in found}) == 12
    shown = {(r["overrides"]["layout.nodes"], r["overrides"]["layout.inference_nodes"]) for r in found}
    assert shown == {(str(nodes), str(engines)) for nodes, engines in SHAPES}
    assert {json.loads((Path(run["run_dir"]) / "layout.json").read_text())["nodes"].__len__() for run in found} == {
        2,
        3,
    }

    third = sweep(empty, command)
    assert third.returncode == 0, third.stderr
    assert "12 runs: 12 done" in third.stdout
    assert len({job.job_id for job in empty.jobs()} - known) == 12

    table = sweep_command(empty, "results", directory)
    assert table.splitlines()[1].startswith("0.3 "), table
    with (directory / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trainer.lr"] for row in rows[:3]] == ["0.3"] * 3
    assert float(rows[0]["reward.max"]) > float(rows[-1]["reward.max"]) > 0
    assert (directory / "results.png").stat().st_size > 10_000
    empty.wait_empty()


def states(cluster: SlurmCluster, known: set[str]) -> Counter[str]:
    return Counter(job.state for job in cluster.jobs() if job.job_id not in known)


def wait_states(cluster: SlurmCluster, known: set[str], wanted: dict[str, int], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while (found := states(cluster, known)) != wanted:
        assert time.monotonic() < deadline, f"{found}, wanted {wanted}"
        time.sleep(0.2)


@pytest.mark.slurm
def test_an_array_is_throttled_found_again_and_cancelled(empty: SlurmCluster, tmp_path: Path, model: Path) -> None:
    known = {job.job_id for job in empty.jobs()}
    words = ("trainer.seed=1,2,3,4", SLEEPS, "sweep.array=true", "sweep.parallel=2", "sweep.name=seeds")
    command = sweep_words(tmp_path, model, *words)
    assert sweep(empty, command, PATH=treacherous_path(empty, tmp_path, nth=1)).returncode == KILLED
    again = sweep(empty, command)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "submitted" not in again.stdout.partition("4 runs: ")[2].splitlines()[0], again.stdout
    wait_states(empty, known, {"RUNNING": 2, "PENDING": 2})
    new = sorted(job.job_id for job in empty.jobs() if job.job_id not in known)
    array = new[0].partition("_")[0]
    assert new == [f"{array}_{index}" for index in range(4)]
    directory = tmp_path / "runs" / "sweeps" / "seeds"
    assert Counter(run["state"] for run in status(empty, directory)) == {"running": 2, "queued": 2}

    # A run of another shape is no part of the array, and waits until there is room.
    more = sweep(empty, sweep_words(tmp_path, model, *words[1:], "trainer.seed=1", "layout.nodes=3"))
    assert more.returncode == 0, more.stdout + more.stderr
    assert "1 run: 1 submitted" in more.stdout
    (alone,) = {job.job_id for job in empty.jobs()} - known - set(new)
    shown = empty.run(["squeue", "--noheader", "--jobs", alone, "--Format=Dependency:100"]).stdout
    assert f"afterany:{array}_2" in shown

    cancelled = sweep_command(empty, "cancel", directory)
    assert "5 runs: 5 cancelled" in cancelled
    # Elements that never ran share one line.
    assert set(states(empty, known)) == {"CANCELLED"}
    empty.wait_empty()
    assert {run["state"] for run in status(empty, directory)} == {"cancelled"}
    lines = [json.loads(line) for line in (directory / "ledger.jsonl").read_text().splitlines()]
    assert sum(line["record"] == "cancelled" for line in lines) == 5
    assert "nothing was queued or running" in sweep_command(empty, "cancel", directory)


def test_an_optimising_sweeper_goes_by_what_the_runs_here_came_to(
    launcher: Launcher, tmp_path: Path, model: Path
) -> None:
    trainer = TRAINER.replace("trainer.lr", "trainer.options.lr")
    words = ("-m", "hydra/sweeper=halving", f"hydra.sweeper.output={tmp_path / 'out'}", "+trainer.options.lr=0")
    common = (f"model.path={model}", "snapshot=false", "sweep.parallel=2", "sweep.name=halving")
    job = launcher(*words, *common, trainer, PYTHONPATH=f"{ROOT}:{ROOT / 'tests/integration/jobs/plugins'}")
    # One of the runs fails, which the sweeper is told and the exit code tells.
    assert job.wait(120) == FAILED_CODE, job.output
    low, high, between, failed = json.loads((tmp_path / "out").read_text())
    assert high < low < between
    assert "is failed" in failed
    found = run_statuses(Ledger(sweep_dir(tmp_path)), Metric.parse("reward"))
    runs = {tuple(run.entry.overrides): run for run in found}
    assert {words[0].partition("=")[2] for words in runs} == {"0.1", "0.9", "0.3", "-1.0"}
    assert runs["trainer.options.lr=0.3",].value == between

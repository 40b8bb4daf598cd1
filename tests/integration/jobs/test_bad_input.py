"""Wrong requests: all their problems in one message, exit code 2 or 3, and nothing created."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.jobs.launched import ROOT, Launcher
from tests.slurm_cluster.cluster import SlurmCluster
from tests.slurm_cluster.processes import descendants

CONFIG_CODE = 2
ALLOCATION_CODE = 4


def message(output: str) -> str:
    """What was printed, which must be one message and no traceback."""
    assert output.startswith("launcher: "), output
    assert "Traceback" not in output
    return output


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["layout.inference_nodes=5"], "`layout.inference_nodes` (5) is more than `layout.nodes` (2)"),
        (["layout.inference_nodes=2"], "leaves no node of `layout.nodes` (2) to train"),
        (["inference.tensor_parallel_size=3", "layout.gpus_per_node=2"], "`inference.tensor_parallel_size` (3)"),
        (["model.path=/no/such/model"], "`model.path` (/no/such/model)"),
        (["trainer.stepz=3"], "`trainer.stepz` is not a setting. HINT: did you mean `trainer.steps`?"),
        (["trainer.steps=many"], "`trainer.steps`"),
        (["cluster.partition=gpu"], "HINT: add `+cluster=slurm`"),
        (["experiment=nope"], "`experiment=nope` names no preset"),
        (["stop"], "`stop` is neither a command nor an override"),
    ],
)
def test_a_wrong_request_is_one_message_and_creates_nothing(
    launcher: Launcher, tmp_path: Path, overrides: list[str], wanted: str
) -> None:
    job = launcher(*overrides)
    assert job.wait(30) == CONFIG_CODE
    assert wanted in message(job.output)
    assert not (tmp_path / "runs").exists()


def test_all_problems_are_shown_at_once(launcher: Launcher) -> None:
    job = launcher("model.path=/no/such/model", "layout.inference_nodes=5", "cluster.setup=[true]")
    assert job.wait(30) == CONFIG_CODE
    assert "3 problems in the configuration; nothing was started:" in job.output
    assert job.output.count("\n  - ") == 3


def test_an_output_directory_below_a_file(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    job = launcher(f"output_dir={tmp_path / 'file' / 'runs'}")
    assert job.wait(30) == CONFIG_CODE
    assert f"`output_dir` ({tmp_path}/file/runs) " in message(job.output)


def test_an_output_directory_that_only_the_kernel_can_write(launcher: Launcher) -> None:
    job = launcher("output_dir=/proc/runs")
    assert job.wait(30) == CONFIG_CODE
    assert "`output_dir` (/proc/runs) cannot be written: No such file or directory" in message(job.output)


def test_an_output_directory_without_inodes_left_and_a_read_only_one(launcher: Launcher, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=10m,nr_inodes=12", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"this machine cannot mount a filesystem: {done.stderr}")
    try:
        for problem in (r"\d inodes left of 12", "Read-only file system"):
            job = launcher(f"output_dir={disk / 'runs'}", "snapshot=false")
            assert job.wait(60) == CONFIG_CODE
            words = rf"`output_dir` \({disk}/runs\) cannot be written: {problem}, {disk}/runs. HINT: "
            assert re.search(words, message(job.output)), job.output
            assert not list(disk.iterdir())
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_machine_without_sbatch(launcher: Launcher, tmp_path: Path) -> None:
    job = launcher("+cluster=slurm", PATH="/nowhere")
    assert job.wait(30) == CONFIG_CODE
    assert "`cluster` (slurm) needs `sbatch`, which is not in PATH. HINT:" in message(job.output)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["cluster.partition=nope"], "`cluster.partition` is 'nope'; `sinfo` lists the partitions."),
        (["layout.nodes=9"], "`layout.nodes` is 9"),
        (["cluster.nodelist=nope"], "nope"),
        (["cluster.mem=9000G"], "`cluster.mem` '9000G'"),
        (["+cluster.sbatch.licenses=nope"], "icense"),
        (["+cluster.sbatch.nonsense=1"], "nonsense"),
    ],
)
def test_what_only_slurm_can_know(slurm: SlurmCluster, tmp_path: Path, overrides: list[str], wanted: str) -> None:
    before = {job.job_id for job in slurm.jobs()}
    words = [sys.executable, "-m", "launcher", "+cluster=slurm", f"output_dir={tmp_path / 'runs'}", *overrides]
    done = slurm.run(words, check=False, PYTHONPATH=str(ROOT))
    assert done.returncode == CONFIG_CODE
    assert done.stdout == ""
    assert message(done.stderr).startswith("launcher: 1 problem in the configuration; nothing was started:")
    assert "SLURM would refuse the job: " in done.stderr
    assert wanted in done.stderr
    assert {job.job_id for job in slurm.jobs()} == before
    assert not (tmp_path / "runs").exists()


@pytest.mark.slurm
def test_an_output_directory_that_the_nodes_do_not_share(slurm: SlurmCluster) -> None:
    """Each node of the cluster has a ``/dev/shm`` of its own, the login node too."""
    folder = f"/dev/shm/runs-{os.getpid()}"
    words = [sys.executable, "-m", "launcher", "+cluster=slurm", f"output_dir={folder}", "cluster.wait=true"]
    try:
        done = slurm.run([*words, "cluster.mem=4G"], check=False, PYTHONPATH=str(ROOT))
    finally:
        slurm.run(["rm", "-rf", folder])
    assert done.returncode != 0
    assert "without a final event from its nodes" in done.stderr
    assert f"HINT: `output_dir` ({folder}) must be on a filesystem that every node sees" in done.stderr
    slurm.wait_empty()


@pytest.mark.slurm
def test_an_allocation_smaller_than_planned(slurm: SlurmCluster, tmp_path: Path) -> None:
    from launcher.config import compose
    from launcher.layout import plan
    from launcher.submit.run_dir import create

    config = compose([f"output_dir={tmp_path}", "layout.nodes=4", "layout.inference_nodes=2"])
    run_dir = create(config, plan(config))
    srun = ["srun", "--nodes=3", "--ntasks-per-node=1", "--kill-on-bad-exit=0"]
    shim = [sys.executable, "-m", "launcher.node.shim", str(run_dir)]
    done = slurm.run([*srun, *shim], check=False, PYTHONPATH=str(ROOT), LAUNCHER_TOKEN="0" * 64)
    # Node 0's code is the run's; the others only say that it has ended.
    assert f"rack0n01: task 0: Exited with exit code {ALLOCATION_CODE}" in done.stderr
    slurm.wait_empty()
    wanted = "The allocation has 3 nodes (rack0n01, rack0n02, rack1n01), but `layout.nodes` is 4."
    assert wanted in (run_dir / "attempts/1/events.jsonl").read_text()
    assert wanted in (run_dir / "attempts/1/logs/agent-0000.log").read_text()
    assert not [process for process in descendants(os.getpid()) if str(run_dir) in process.command]

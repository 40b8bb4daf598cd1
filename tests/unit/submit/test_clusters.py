"""What a job inherits, what is asked of SLURM, and what its answers mean."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.config import Config, compose
from launcher.submit.cluster import job_environment
from launcher.submit.job_script import render, template_path
from launcher.submit.resources import slurm_config
from launcher.submit.slurm import SbatchCluster

FOREIGN = {
    "SLURM_NTASKS": "4",
    "SLURM_JOB_ID": "1",
    "SBATCH_PARTITION": "x",
    "SRUN_DEBUG": "3",
    "SALLOC_ACCOUNT": "x",
    "SQUEUE_PARTITION": "x",
    "SCANCEL_INTERACTIVE": "1",
    "PMI_RANK": "0",
    "PMIX_RANK": "0",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "x",
    "TORCHELASTIC_RUN_ID": "x",
    "LAUNCHER_TOKEN": "x",
    "LAUNCHER_CONTROL": "x",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_API_KEY": "x",
}
KEPT = {"SLURM_CONF": "/x/slurm.conf", "SLURM_JWT": "x", "CUDA_VISIBLE_DEVICES": "1", "HOME_SWEET": "home"}


def test_a_job_inherits_nothing_of_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**FOREIGN, **KEPT}.items():
        monkeypatch.setenv(name, value)
    environ = job_environment()
    assert not set(FOREIGN) & set(environ)
    assert {name: environ[name] for name in KEPT} == KEPT


def test_a_job_finds_this_package_first(monkeypatch: pytest.MonkeyPatch) -> None:
    import launcher

    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert job_environment()["PYTHONPATH"] == f"{Path(launcher.__file__).parent.parent}{os.pathsep}/mine"


def script(tmp_path: Path, *overrides: str) -> list[str]:
    config = compose(["+cluster=slurm", *overrides])
    text = render(SbatchCluster(config).script(tmp_path), template_path(slurm_config(config)))
    return text.splitlines()


def test_the_job_script_asks_for_what_the_configuration_says(tmp_path: Path) -> None:
    lines = script(
        tmp_path,
        *("layout=gpu", "layout.nodes=4", "layout.inference_nodes=2", "bridge=auto", "name=first"),
        *("cluster.partition=gpu", "cluster.time=1-00:00:00", "cluster.qos=high", "cluster.exclusive=true"),
        *("cluster.mem=64G", "cluster.cpus_per_task=16", "+cluster.sbatch.comment='two words'"),
        *(
            "cluster.container=/images/x.sqsh",
            "cluster.container_mounts=/data:/data",
            "cluster.srun_args=['--mpi=none']",
        ),
    )
    for wanted in (
        *("--nodes=4", "--ntasks-per-node=1", "--partition=gpu", "--time=1-00:00:00", "--qos=high", "--exclusive"),
        *("--mem=64G", "--cpus-per-task=16", "--gpus-per-node=8", "--comment='two words'", "--job-name=first"),
    ):
        assert f"#SBATCH {wanted}" in lines
    srun, outside = [line for line in lines if line.startswith("srun ")]
    for wanted in ("--kill-on-bad-exit=0", "--no-kill", "--export=ALL", "--cpus-per-task=16", "--mpi=none"):
        assert f" {wanted} " in srun
    assert " --container-image=/images/x.sqsh --container-mounts=" in srun
    assert ",/data:/data " in srun
    # Should the first node be lost, the others need a program outside of the image.
    assert "--relative=1 --nodes=3 " in outside
    assert " --overlap " in outside
    assert "--container" not in outside


@pytest.mark.parametrize(
    ("overrides", "option"),
    [
        (["layout=gpu", "cluster.gpu_request=gres"], "#SBATCH --gres=gpu:8"),
        (["layout=gpu", "cluster.gpu_request=gres", "cluster.gpu_type=h100"], "#SBATCH --gres=gpu:h100:8"),
        (["layout=gpu", "cluster.gpu_type=h100"], "#SBATCH --gpus-per-node=h100:8"),
        (["layout=gpu", "cluster.gpu_request=none"], None),
        (["layout=cpu"], None),
    ],
)
def test_gpus_are_asked_for_as_the_site_wants(tmp_path: Path, overrides: list[str], option: str | None) -> None:
    lines = [line for line in script(tmp_path, *overrides) if line.startswith(("#SBATCH --gpus", "#SBATCH --gres"))]
    assert lines == ([option] if option else [])


def test_the_token_is_made_by_the_job_and_is_not_in_the_script(tmp_path: Path) -> None:
    (line,) = [line for line in script(tmp_path) if line.startswith("LAUNCHER_TOKEN=")]
    shell = subprocess.run(
        ["bash", "-c", f"{line}; printf %s $LAUNCHER_TOKEN"], capture_output=True, text=True, check=True
    )
    assert len(shell.stdout) == 64
    assert int(shell.stdout, 16)


def test_without_sbatch_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (problem,) = SbatchCluster(compose(["+cluster=slurm"])).check()
    assert "needs `sbatch`, which is not in PATH" in problem
    assert "HINT" in problem


def test_a_local_configuration_is_no_slurm_cluster() -> None:
    with pytest.raises(TypeError):
        SbatchCluster(Config())


@pytest.mark.parametrize("module", ["launcher.submit.executor", "launcher.submit.new_run", "launcher.node.shim"])
def test_what_a_job_starts_with_can_be_imported_first(module: str) -> None:
    # submitit unpickles the task in a process that has imported nothing else.
    done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

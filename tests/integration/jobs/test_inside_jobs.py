"""Runs that are submitted from inside another job, on a real SLURM: from `salloc`, `srun --pty` and a task of an array.

What the enclosing job exports describes that job. Nothing of it may reach the run's own.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.jobs.launched import ROOT, run_dir_of
from tests.slurm_cluster.cluster import SlurmCluster

pytestmark = [pytest.mark.slurm]

RESOURCES = ["--partition=urgent", "--nodes=1", "--ntasks=3", "--cpus-per-task=2", "--mem=1G", "--time=7"]
OWN = {"SLURM_JOB_NUM_NODES": "2", "SLURM_NNODES": "2", "SLURM_JOB_PARTITION": "batch", "SLURM_JOB_NAME": "inner"}


def inner_words(folder: Path, model: Path) -> list[str]:
    """A run whose job writes its environment to a file, and ends before it starts anything."""
    words = [sys.executable, "-m", "launcher", "+cluster=slurm", f"output_dir={folder / 'runs'}", "name=inner"]
    setup = f"cluster.setup=['env --null > {folder / 'environment'}', 'exit 0']"
    return [*words, f"model.path={model}", "cluster.mem=4G", 'trainer.command=[sleep,"600"]', setup]


def from_login(words: list[str], folder: Path) -> list[str]:
    return words


def from_salloc(words: list[str], folder: Path) -> list[str]:
    return ["salloc", *RESOURCES, *words]


def from_srun_pty(words: list[str], folder: Path) -> list[str]:
    # `srun --pty` wants a terminal: `script` is one.
    step = shlex.join(["srun", "--pty", *RESOURCES[:2], "--ntasks=1", *RESOURCES[3:], *words])
    return ["script", "--quiet", "--return", "--flush", "--command", step, "/dev/null"]


def from_array_task(words: list[str], folder: Path) -> list[str]:
    options = ["sbatch", "--wait", "--array=3", *RESOURCES, f"--output={folder / 'outer'}"]
    return [*options, "--wrap", shlex.join(words)]


def submit_from(
    cluster: SlurmCluster, enter: Callable[[list[str], Path], list[str]], folder: Path, model: Path
) -> tuple[str, str, dict[str, str]]:
    """Output and id of the run's job, and the variables of SLURM's that its job script got."""
    folder.mkdir()
    command = enter(inner_words(folder, model), folder)
    done = cluster.run(command, timeout_s=120, check=False, PYTHONPATH=str(ROOT), SBATCH_PARTITION="urgent")
    outer = folder / "outer"
    output = done.stdout + done.stderr + (outer.read_text() if outer.exists() else "")
    output = output.replace("\r\n", "\n")
    assert done.returncode == 0, output
    job_id = output.partition("submitted job ")[2].split()[0]
    cluster.wait_job(job_id, ("COMPLETED", "FAILED"))
    assert run_dir_of(output).parent == folder / "runs"
    pairs = (entry.partition("=") for entry in (folder / "environment").read_text().split("\0"))
    return output, job_id, {name: value for name, _, value in pairs if name.startswith(("SLURM", "SBATCH", "SRUN"))}


def test_a_run_from_inside_a_job_has_a_job_of_its_own(slurm: SlurmCluster, tmp_path: Path, model: Path) -> None:
    output, _, plain = submit_from(slurm, from_login, tmp_path / "login", model)
    assert "`cluster.partition` is urgent, from SBATCH_PARTITION" in output
    assert plain["SLURM_JOB_PARTITION"] == "urgent"
    for enter in (from_salloc, from_srun_pty, from_array_task):
        output, job_id, found = submit_from(slurm, enter, tmp_path / enter.__name__, model)
        (outer,) = set(re.findall(r"SBATCH_PARTITION: not used, as this shell is part of job (\d+)", output))
        assert job_id != outer
        assert found["SLURM_JOB_ID"] == found["SLURM_JOBID"] == job_id
        assert OWN.items() <= found.items(), found
        # The same names as without an enclosing job, and no value of that one.
        assert found.keys() == plain.keys(), found.keys() ^ plain.keys()
        assert not [name for name, value in found.items() if re.search(rf"\b{outer}\b", value)], found
        shown = slurm.run(["scontrol", "show", "job", job_id]).stdout
        assert "ArrayJobId" not in shown
        assert "NumNodes=2" in shown
        assert "TimeLimit=00:07:00" not in shown
    slurm.wait_empty()

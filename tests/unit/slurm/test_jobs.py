"""Ids of jobs: what `sbatch` prints around them, and the cluster that they are on."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.slurm.jobs import JobId, cancel_jobs, read_job_id
from launcher.slurm.query import job_states
from tests.unit.slurm_tools import calls, row, tool, tools

__all__ = ["tools"]

OUTPUTS = {
    "55721349\n": JobId("55721349"),
    "55721349;alpha\n": JobId("55721349", "alpha"),
    "your job 7 used 3 GPU hours\n55721349\n": JobId("55721349"),
    "account lab: 12 h left\nSubmitted batch job 55721349\n": JobId("55721349"),
    "Submitted batch job 55721349 on cluster alpha\n": JobId("55721349", "alpha"),
    "55721349\nSubmitted batch job 55721349\n": JobId("55721349"),
    "see job 7\n  55721349  \nbye\n": JobId("55721349"),
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_id_is_read_among_other_lines(output: str) -> None:
    wanted = OUTPUTS[output]
    assert read_job_id(output, keep_cluster=True) == wanted
    assert read_job_id(output, keep_cluster=False) == JobId(wanted.number)


@pytest.mark.parametrize("output", ["", "job 7\n", "Submitted batch job 7, queued\n", "7\n55721349\n", "7; 8\n"])
def test_an_id_is_never_guessed(output: str) -> None:
    with pytest.raises(ValueError, match="job id"):
        read_job_id(output, keep_cluster=True)


@pytest.mark.parametrize("text", ["12", "12_3", "12+1", "12;alpha", "12_3;alpha-2.x"])
def test_an_id_survives_its_text(text: str) -> None:
    assert str(JobId.parse(text)) == text


def test_each_cluster_is_queried_by_its_name(tools: Path) -> None:
    alpha = f"echo 'CLUSTER: alpha'; {row('1', 'RUNNING')}"
    tool(tools, "squeue", f'case "$*" in *--clusters=alpha*) {alpha};; *) {row("1", "PENDING")};; esac')
    states = job_states(["1", "1;alpha"])
    assert {job_id: state.name for job_id, state in states.items()} == {"1": "PENDING", "1;alpha": "RUNNING"}
    tool(tools, "scancel", "true")
    cancel_jobs(["1", "2", "1_4;alpha"], signal="USR2")
    assert [line for line in calls(tools) if line.startswith("scancel")] == [
        "scancel --signal=USR2 1 2",
        "scancel --signal=USR2 --clusters=alpha 1_4",
    ]


@pytest.mark.parametrize(("status", "code"), [(1280, 5), (9, 137), ("5:0", 5), ("0:9", 137), ("", 0), ("N/A", 0)])
def test_the_exit_code_is_read_as_each_release_prints_it(tools: Path, status: int | str, code: int) -> None:
    tool(tools, "squeue", row("1", "FAILED", status))
    assert job_states(["1"])["1"].exit_code == code

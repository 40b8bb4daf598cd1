"""A job that queues itself again, on a real SLURM."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

import pytest

from tests.slurm_cluster.cluster import SlurmCluster

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[3]
DEADLINE_S = 60
SLOW = """#!/bin/bash
"$SCONTROL" "$@"
code=$?
[ "$1" = requeue ] && sleep 30
exit $code
"""
PROGRAM = """
import os, pathlib, signal, sys
from launcher.slurm.job_signals import requeue
signal.signal(signal.SIGTERM, lambda *_: None)  # as agents do
out = pathlib.Path(sys.argv[1])
if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
    problem = requeue()
    out.with_suffix(".new").write_text(repr(problem))
    out.with_suffix(".new").rename(out)
"""


def test_the_requeue_that_ends_its_own_scontrol_has_worked(slurm: SlurmCluster, tmp_path: Path) -> None:
    """SLURM ends all processes of the job; the one that asked it to may not have ended by then."""
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(SLOW)
    scontrol.chmod(0o755)
    (tmp_path / "program.py").write_text(PROGRAM)
    out = tmp_path / "said"
    command = shlex.join([sys.executable, str(tmp_path / "program.py"), str(out)])
    words = ["sbatch", "--parsable", "--requeue", "--mem=100M", "--output=/dev/null"]
    real = slurm.run(["which", "scontrol"]).stdout.strip()
    job_id = slurm.run(
        [*words, f"--wrap=PATH={tmp_path / 'bin'}:$PATH exec {command}"], SCONTROL=real, PYTHONPATH=str(ROOT)
    ).stdout.strip()
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not out.exists():
            assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {slurm.run(['squeue']).stdout}"
            time.sleep(0.1)
        assert out.read_text() == "None"
    finally:
        slurm.run(["scancel", job_id], check=False)


def test_an_element_of_an_array_requeues_itself_alone(slurm: SlurmCluster, tmp_path: Path) -> None:
    """Lightning-AI/pytorch-lightning#15022: the number of the array alone means all of its elements."""
    (tmp_path / "program.py").write_text(PROGRAM)
    command = shlex.join([sys.executable, str(tmp_path / "program.py"), str(tmp_path / "said")])
    script = (
        f"echo $SLURM_ARRAY_TASK_ID $SLURM_RESTART_COUNT >> {tmp_path}/starts;"
        f" [ $SLURM_ARRAY_TASK_ID = 0 ] || {command}"
    )
    words = ["sbatch", "--parsable", "--requeue", "--array=0-1", "--mem=100M", "--output=/dev/null"]
    array = slurm.run([*words, f"--wrap={script}"], PYTHONPATH=str(ROOT)).stdout.strip()
    try:
        starts = tmp_path / "starts"
        deadline = time.monotonic() + DEADLINE_S
        while not starts.exists() or len(starts.read_text().splitlines()) < 3:
            assert time.monotonic() < deadline, slurm.run(["squeue"]).stdout
            time.sleep(0.1)
        slurm.wait_job(f"{array}_1", ["COMPLETED"])
        assert (tmp_path / "said").read_text() == "None"
        assert sorted(line.strip() for line in starts.read_text().splitlines()) == ["0", "1", "1 1"]
    finally:
        slurm.run(["scancel", array], check=False)

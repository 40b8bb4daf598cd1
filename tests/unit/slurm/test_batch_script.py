"""SLURM's commands through the job script, with programs in the place of SLURM's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.config import compose
from launcher.slurm.client import run_outside
from launcher.submit.job_script import job_script, render, set_run_dir, template_path
from launcher.submit.resources import slurm_config

ROOT = Path(__file__).parents[3]
SCONTROL = """#!/bin/bash
echo "$@" >> {log}
case $1 in
    show) echo "JobId=7 JobState=RUNNING Restarts=0 NodeList=gpu-02 time=$SLURM_TIME_FORMAT" ;;
    requeue) exit {code} ;;
esac
"""
SRUN = """#!/bin/bash
# Inside of an image PATH holds none of SLURM's commands.
PATH=/nowhere exec {python} -c '{program}'
"""
PROGRAM = """
import json, pathlib
from launcher.slurm.job_signals import Reach, cancel_own_job, signal_cause, node_removed_from_job, reach_slurm, requeue
found = {
    "reach": reach_slurm(20).name,
    "fate": str(signal_cause(0, timeout_s=20)),
    "removed": node_removed_from_job("gpu-01"),
    "requeue": requeue(),
}
cancel_own_job()
pathlib.Path("OUT").write_text(json.dumps(found))
"""


@pytest.mark.parametrize(("code", "requeue"), [(0, None), (1, "Job is not requeueable")])
def test_the_job_script_answers_for_a_node_that_has_none_of_slurms_commands(
    tmp_path: Path, code: int, requeue: str | None
) -> None:
    programs, run_dir, out, log = tmp_path / "bin", tmp_path / "run", tmp_path / "out.json", tmp_path / "calls"
    programs.mkdir()
    run_dir.mkdir()
    program = PROGRAM.replace("OUT", str(out)).replace("'", '"')
    failing = SCONTROL.replace("exit {code}", "[ {code} = 0 ] || echo Job is not requeueable; exit {code}")
    scripts = {
        "scontrol": failing.format(log=log, code=code),
        "scancel": f'#!/bin/bash\necho cancel "$@" >> {log}\n',
        "srun": SRUN.format(python=sys.executable, program=program),
    }
    for name, text in scripts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    config = compose(["+cluster=slurm"])
    script = job_script(config, run_dir=set_run_dir(run_dir), command="agent")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environ = kept | {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "PYTHONPATH": str(ROOT)}
    text = render(script, template_path(slurm_config(config)))
    done = subprocess.run(["bash"], input=text, text=True, env=environ, check=False, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["reach"] == "JOB_SCRIPT"
    assert found["fate"] == "SignalCause(is_requeued=False, is_preempted=False, is_out_of_time=False, is_ending=False)"
    assert found["removed"] is True
    assert found["requeue"] == requeue
    shown = "show job --oneliner 7"
    assert set(log.read_text().splitlines()) == {shown, "requeue 7", "cancel 7"}
    assert not list((run_dir / "attempts" / "1" / "slurm").iterdir())


def test_without_such_a_script_there_is_no_answer(tmp_path: Path) -> None:
    assert run_outside("show", "7", 1.0, {}) is None
    assert run_outside("show", "7", 1.0, {"LAUNCHER_EXIT_FILE": str(tmp_path / "exit_code")}) is None
    (tmp_path / "slurm").mkdir()
    with pytest.raises(subprocess.TimeoutExpired):
        run_outside("show", "7", 0.3, {"LAUNCHER_EXIT_FILE": str(tmp_path / "exit_code")})
    assert not list((tmp_path / "slurm").iterdir())

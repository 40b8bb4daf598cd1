"""Habits of sites and users that made other programs that submit SLURM jobs go wrong, each on a real SLURM.

Every test names public reports of its kind in its docstring.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.jobs.launched import ROOT, run_dir_of
from tests.integration.jobs.submitted import submit
from tests.slurm_cluster.cluster import SlurmCluster

pytestmark = [pytest.mark.slurm]

SHAPE = ("layout.nodes=2", "layout.inference_nodes=1")
SLEEPS = 'trainer.command=[sleep,"600"]'
PASSES = "trainer.command=[python,-c,pass]"


def command(cluster: SlurmCluster, *words: str | Path, **env: str) -> tuple[int, str]:
    """Exit code and output of one ``launcher`` command on the login node."""
    done = cluster.run([sys.executable, "-m", "launcher", *words], check=False, PYTHONPATH=str(ROOT), **env)
    return done.returncode, done.stdout + done.stderr


def status(cluster: SlurmCluster, run_dir: Path, **env: str) -> dict[str, Any]:
    code, output = command(cluster, "status", run_dir, "--json", **env)
    assert code == 0, output
    return dict(json.loads(output))


def test_variables_that_change_what_squeue_prints_change_nothing(
    slurm: SlurmCluster, tmp_path: Path, model: Path
) -> None:
    """Parsl/parsl#2293, amq92/simple_slurm#18: SQUEUE_FORMAT of the user's shell."""
    habits = {
        "SQUEUE_FORMAT": "%j",
        "SQUEUE_FORMAT2": "Name:3",
        "SQUEUE_STATES": "SUSPENDED",
        "SQUEUE_PARTITION": "urgent",
        "SQUEUE_USERS": "nobody",
        "SQUEUE_SORT": "-t",
        "SACCT_FORMAT": "user",
        "SLURM_TIME_FORMAT": "relative",
    }
    job = submit(slurm, tmp_path, f"model.path={model}", SLEEPS, *SHAPE, "+cluster.sbatch.hold=true", env=habits)
    assert job.code == 0, job.output
    assert status(slurm, job.run_dir, **habits)["state"] == "held"
    code, output = command(slurm, "cancel", job.run_dir, **habits)
    assert code == 0, output
    assert slurm.job_state(job.job_id) == "CANCELLED"


def test_a_job_gets_what_it_needs_where_a_site_exports_nothing(
    slurm: SlurmCluster, tmp_path: Path, model: Path
) -> None:
    """NOAA-EPIC/EAGLE#171, ResearchComputing/Documentation#86, OSC/ood_core#270; CoBrALab/qbatch#139 for TMPDIR.

    Beside it, what an outer allocation leaves in the environment (LBANN/lbann#1477, huggingface/datatrove#296,
    snakemake/snakemake-executor-plugin-slurm#373), and functions that a site's shell exports (CoBrALab/qbatch#61).
    """
    habits = {
        "SBATCH_EXPORT": "NONE",
        "SLURM_EXPORT_ENV": "NONE",
        "TMPDIR": "/no/such/directory",
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_NTASKS_PER_GPU": "1",
        "SLURM_TRES_PER_TASK": "cpu:3",
        "BASH_FUNC_module%%": "() {  echo 'of the site'\n}",
        "TWO_LINES": "1\n2 'x",
        # Nobody can write there, as in a home directory that is full or read-only.
        "HOME": "/proc",
        "SLURM_CPU_BIND": "map_cpu:0",
        "SLURM_DISTRIBUTION": "cyclic",
        "SITE_TOKEN": "t0ken-of-the-site",
    }
    seen = tmp_path / "seen"
    program = f"import os, pathlib; pathlib.Path({str(seen)!r}).write_text(os.environ['SITE_TOKEN'])"
    words = json.dumps(["python", "-c", program])
    job = submit(
        slurm, tmp_path, "cluster.wait=true", f"model.path={model}", f"trainer.command={words}", *SHAPE, env=habits
    )
    assert job.code == 0, job.output
    assert seen.read_text() == "t0ken-of-the-site"
    up = [event["node_rank"] for event in job.events if event["event"] == "node_up"]
    assert sorted(up) == [0, 1]
    for node_rank in (0, 1):
        checks = {check["name"]: check for check in job.event("preflight", node_rank=node_rank)["checks"]}
        assert checks["disk"]["ok"]
        assert "the home directory /proc cannot be written" in checks["disk"]["text"]
    slurm.wait_empty()


def test_a_path_may_hold_what_shells_and_slurm_give_a_meaning_to(
    slurm: SlurmCluster, tmp_path: Path, model: Path
) -> None:
    """nextflow-io/nextflow#218, mlr-org/batchtools#252, eth-cscs/firecrest-v2#148, neilmunday/slurm-mail#67."""
    folder = tmp_path / "a (b) 'c' |d $HOME [1-2] é"
    folder.mkdir()
    spare = shutil.copytree(model, folder / "the model")
    own = f"output_dir={json.dumps(str(folder / 'runs'), ensure_ascii=False)}"
    given = f"model.path={json.dumps(str(spare), ensure_ascii=False)}"
    code, output = command(slurm, "+cluster=slurm", own, given, PASSES, *SHAPE, "cluster.mem=4G", "cluster.wait=true")
    assert code == 0, output
    (run_dir,) = [path for path in (folder / "runs").iterdir() if not path.name.startswith(".")]
    assert (run_dir / "attempts/1/end.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name]
    slurm.wait_empty()


def test_a_job_that_is_requeued_in_hold_is_neither_over_nor_lost(
    slurm: SlurmCluster, tmp_path: Path, model: Path
) -> None:
    """gwforg/gwf#251: the state REQUEUE_HOLD ended another program with a traceback."""
    job = submit(slurm, tmp_path, f"model.path={model}", SLEEPS, *SHAPE)
    slurm.wait_job(job.job_id, ["RUNNING"])
    slurm.run(["scontrol", "requeuehold", job.job_id])
    deadline = time.monotonic() + 60
    while slurm.job_state(job.job_id) in ("RUNNING", "COMPLETING") and time.monotonic() < deadline:
        time.sleep(0.2)
    shown = status(slurm, job.run_dir)
    assert shown["state"] == "held", shown
    code, output = command(slurm, "status", job.run_dir, "--once")
    assert code == 0, output
    assert "hold" in output.lower() or "held" in output.lower(), output
    code, output = command(slurm, "cancel", job.run_dir)
    assert code == 0, output
    slurm.wait_empty()


def test_jobs_of_others_and_forgotten_ones_do_not_disturb_a_listing(
    slurm: SlurmCluster, tmp_path: Path, model: Path
) -> None:
    """TUM-DAML/seml#47 and amq92/simple_slurm#44 (throttled arrays); NOAA-GSL/rocoto#74 (unknown ids)."""
    array = slurm.run(["sbatch", "--parsable", "--hold", "--array=0-9%1", "--wrap=true"]).stdout.strip()
    known = submit(slurm, tmp_path, f"model.path={model}", SLEEPS, *SHAPE, "+cluster.sbatch.hold=true")
    forgotten = submit(slurm, tmp_path, f"model.path={model}", SLEEPS, *SHAPE, "+cluster.sbatch.hold=true")
    slurm.run(["scancel", forgotten.job_id])
    jobs = forgotten.run_dir / "jobs.jsonl"
    # An id that this SLURM never gave: what another cluster, or one that was set up anew, has in its records.
    jobs.write_text(jobs.read_text().replace(forgotten.job_id, "49999999"))
    code, output = command(slurm, "runs", "--json", "--output-dir", tmp_path / "runs")
    assert code == 0, output
    states = {Path(run["path"]).name: run["state"] for run in json.loads(output)}
    assert states[known.run_dir.name] == "held"
    assert states[forgotten.run_dir.name] not in ("held", "queued")
    assert states[forgotten.run_dir.name] != "completed"
    slurm.run(["scancel", array, known.job_id])


def test_a_job_that_can_never_start_says_so(slurm: SlurmCluster, tmp_path: Path, model: Path) -> None:
    """desihub/desispec#2682, MikeDacre/fyrd#51: DependencyNeverSatisfied was shown as waiting, for ever."""
    failed = slurm.run(["sbatch", "--parsable", "--wrap=false", "--output=/dev/null"]).stdout.strip()
    slurm.wait_job(failed, ["FAILED"])
    never = f"+cluster.sbatch.dependency=afterok:{failed}"
    job = submit(slurm, tmp_path, f"model.path={model}", SLEEPS, *SHAPE, never)
    if job.code:  # SLURM itself refused it: nothing may be queued then
        assert "dependency" in job.output.lower(), job.output
        return
    deadline = time.monotonic() + 30
    while "DependencyNeverSatisfied" not in (output := command(slurm, "status", job.run_dir, "--once")[1]):
        assert time.monotonic() < deadline, output
        time.sleep(0.5)
    code, output = command(slurm, "cancel", job.run_dir)
    assert code == 0, output


def test_a_job_id_that_was_given_again_is_not_ours(slurm: SlurmCluster, tmp_path: Path, model: Path) -> None:
    """facebookincubator/submitit#1660: after a reset SLURM counts job ids from the beginning."""
    job = submit(slurm, tmp_path, f"model.path={model}", SLEEPS, *SHAPE, "+cluster.sbatch.hold=true")
    theirs = slurm.run(
        ["sbatch", "--parsable", "--job-name=theirs", "--output=/dev/null", "--wrap=sleep 600"]
    ).stdout.strip()
    slurm.run(["scancel", job.job_id])
    jobs = job.run_dir / "jobs.jsonl"
    jobs.write_text(jobs.read_text().replace(job.job_id, theirs))
    slurm.wait_job(theirs, ["RUNNING"])
    assert status(slurm, job.run_dir)["state"] not in ("running", "queued", "starting")
    _, output = command(slurm, "cancel", job.run_dir)
    assert slurm.job_state(theirs) == "RUNNING", output
    slurm.run(["scancel", theirs])


def test_a_job_whose_script_could_not_begin_failed(slurm: SlurmCluster, tmp_path: Path, model: Path) -> None:
    """VUIIS/dax#536: exit code 0:53, because SLURM could not open the job's output, and there is no log at all."""
    job = submit(slurm, tmp_path, f"model.path={model}", SLEEPS, *SHAPE, "+cluster.sbatch.hold=true")
    assert job.code == 0, job.output
    folder = run_dir_of(job.output) / "submitit"
    hidden = folder.rename(folder.with_name("hidden"))
    folder.write_text("a file where a directory was")
    slurm.run(["scontrol", "release", job.job_id])
    deadline = time.monotonic() + 60
    while slurm.job_state(job.job_id) in ("PENDING", "RUNNING", "COMPLETING"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert status(slurm, job.run_dir)["state"] == "failed"
    code, output = command(slurm, "why", job.run_dir)
    assert code == 0, output
    assert f"it can write no output below {job.run_dir} (exit code 0:53)" in output, output
    folder.unlink()
    hidden.rename(folder)


def test_a_job_script_that_fails_before_the_nodes_start_is_explained(
    slurm: SlurmCluster, tmp_path: Path, model: Path
) -> None:
    """lanl/BEE#685: what a job ended by stood in no file that anybody was told of."""
    job = submit(
        slurm,
        tmp_path,
        "cluster.wait=true",
        f"model.path={model}",
        SLEEPS,
        *SHAPE,
        "cluster.setup=['no_such_module load cuda/99']",
    )
    assert job.code == 127, job.output
    for output in (job.output, command(slurm, "why", job.run_dir)[1]):
        assert "the job script ended with exit code 127 before any node had started" in output, output
        assert "no_such_module: command not found" in output, output

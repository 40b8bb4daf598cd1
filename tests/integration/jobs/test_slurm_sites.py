"""Sites that are set up differently: programs in front of SLURM's own, small limits, defaults in the login shell."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.jobs.launched import ROOT
from tests.integration.jobs.submitted import Submitted, submit
from tests.slurm_cluster.cluster import NODES, SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.engine]

SLEEPS = ("name=site", 'trainer.command=[sleep,"600"]')
MAX_ARRAY_SIZE = 4
REFUSED = 3


@pytest.fixture(scope="module")
def site() -> Iterator[SlurmCluster]:
    """Forgets jobs at once, allows small arrays only, and gives every task variables of an MPI library."""
    options = {"MinJobAge": "2", "MaxArraySize": str(MAX_ARRAY_SIZE), "MpiDefault": "pmi2"}
    with SlurmCluster(NODES, options=options) as cluster:
        yield cluster
        cluster.cancel_all()


@pytest.fixture
def front(site: SlurmCluster, tmp_path: Path) -> Callable[[str, str], dict[str, str]]:
    """Puts a shell script in front of one of SLURM's programs; gives the variables that make it found."""

    def put(name: str, script: str) -> dict[str, str]:
        folder = tmp_path / "front"
        folder.mkdir()
        real = shutil.which(name)
        (folder / name).write_text(f'#!/bin/bash\nreal() {{ {real} "$@"; }}\n{script}\n')
        (folder / name).chmod(0o755)
        return {"PATH": f"{folder}:{site.env['PATH']}"}

    return put


def in_queue(cluster: SlurmCluster, folder: Path) -> dict[str, str]:
    """State by job of the jobs that log below ``folder``."""
    fields = "--Format=JobArrayID:40,State:20,STDOUT:1000"
    lines = cluster.run(["squeue", "--noheader", "--states=all", fields]).stdout.splitlines()
    return {line[:40].strip(): line[40:60].strip() for line in lines if line[60:].startswith(str(folder))}


def test_a_failed_run_that_slurm_has_forgotten_is_no_success(
    site: SlurmCluster, tmp_path: Path, model: Path, front: Callable[[str, str], dict[str, str]]
) -> None:
    # As a controller that is so slow that it has forgotten the job when it answers.
    end = f"{tmp_path}/runs/*/attempts/1/end.json"
    late = f'if ls {end} > /dev/null 2>&1; then while real "$@" 2> /dev/null | grep -q .; do sleep 0.5; done; fi'
    env = front("squeue", f'{late}\nreal "$@"')
    fails = "trainer.command=[python,-c,'raise SystemExit(7)']"
    job = submit(site, tmp_path, "cluster.wait=true", f"model.path={model}", fails, env=env)
    assert job.code == 5, job.output
    assert "no longer known to SLURM" in job.output or "Failed after" in job.output


NOISE = {
    "a line about another job": 'echo "site: your job 7 used 3 GPU hours"; real "$@"',
    "SLURM's own sentence": 'id=$(real "$@") || exit; echo "welcome to job 7"; echo "Submitted batch job $id"',
    "only the number": 'id=$(real "$@") || exit; echo "  $id  "',
}


@pytest.mark.parametrize("noise", NOISE)
def test_the_id_is_the_jobs_own_whatever_the_site_prints(
    site: SlurmCluster, tmp_path: Path, noise: str, front: Callable[[str, str], dict[str, str]]
) -> None:
    job = submit(
        site, tmp_path, *SLEEPS, env=front("sbatch", f'[[ "$*" == *test-only* ]] && exec true\n{NOISE[noise]}')
    )
    assert job.code == 0, job.output
    assert list(in_queue(site, tmp_path)) == [job.job_id]
    cancelled = site.run([sys.executable, "-m", "launcher", "cancel", job.run_dir], PYTHONPATH=str(ROOT))
    assert job.job_id in cancelled.stdout
    site.cancel_all()


UNREADABLE = {
    "no id": 'real "$@" > /dev/null || exit; echo "thank you, as for job 7"',
    "two ids": 'real "$@" || exit; echo 7',
    "an error after it was queued": 'real "$@"; echo "sbatch: error: Socket timed out" >&2; exit 1',
}


@pytest.mark.parametrize("output", UNREADABLE)
def test_a_job_whose_id_cannot_be_read_is_not_left_behind(
    site: SlurmCluster, tmp_path: Path, output: str, front: Callable[[str, str], dict[str, str]]
) -> None:
    env = front("sbatch", f'[[ "$*" == *test-only* ]] && exec true\n{UNREADABLE[output]}')
    job = submit(site, tmp_path, *SLEEPS, env=env)
    assert job.code == REFUSED, job.output
    found = re.search(r"Job (\d+), which was queued, is cancelled", job.output)
    assert found is not None, job.output
    deadline = time.monotonic() + 20
    while (states := in_queue(site, tmp_path)).get(found[1], "CANCELLED") != "CANCELLED":
        assert time.monotonic() < deadline, states
        time.sleep(0.2)
    assert set(states) <= {found[1]}
    assert not list((tmp_path / "runs").glob("site-*"))


def test_what_the_login_shell_exports_is_the_default_and_is_shown(site: SlurmCluster, tmp_path: Path) -> None:
    env = {"SBATCH_PARTITION": "urgent", "SBATCH_TIMELIMIT": "30", "SBATCH_EXPORT": "NONE"}
    job = submit(site, tmp_path, *SLEEPS, env=env)
    assert job.code == 0, job.output
    assert "`cluster.partition` is urgent, from SBATCH_PARTITION" in job.output
    assert "`cluster.time` is 30, from SBATCH_TIMELIMIT" in job.output
    assert "SBATCH_EXPORT: not used" in job.output
    shown = site.run(["scontrol", "show", "job", job.job_id]).stdout
    assert "Partition=urgent" in shown
    assert "TimeLimit=00:30:00" in shown
    # Eight processes would share one CPU if nothing were requested.
    assert re.search(r"NumCPUs=(?!2\b)\d+", shown), shown
    site.cancel_all()
    given = submit(site, tmp_path, *SLEEPS, "cluster.partition=batch", env=env)
    assert "Partition=batch" in site.run(["scontrol", "show", "job", given.job_id]).stdout, given.output
    site.cancel_all()


def test_a_job_is_submitted_from_a_step_of_an_arrays_task(site: SlurmCluster, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "launcher", "+cluster=slurm", f"output_dir={tmp_path / 'runs'}", "cluster.mem=4G"]
    inner = " ".join(f"'{word}'" for word in [*words, *SLEEPS])
    options = ["--parsable", "--array=3", "--nodes=1", "--mem=1G", f"--output={tmp_path}/outer.out"]
    env = {"PYTHONPATH": str(ROOT), "SBATCH_PARTITION": "urgent"}
    outer = site.run(["sbatch", *options, "--wrap", f"srun --mem=1G {inner}"], **env).stdout.strip()
    deadline = time.monotonic() + 90
    while f"{outer}_3" in (queue := site.run(["squeue", "--noheader", "--array", "--format=%i"]).stdout.split()):
        assert time.monotonic() < deadline, queue
        time.sleep(0.5)
    output = (tmp_path / "outer.out").read_text()
    assert "submitted job " in output, output
    job = Submitted(code=0, output=output, seconds=0)
    shown = site.run(["scontrol", "show", "job", job.job_id]).stdout
    assert "NumNodes=2" in shown, shown
    assert "Partition=batch" not in shown or "SBATCH_PARTITION: not used" in output
    site.cancel_all()


def test_a_path_with_odd_characters_and_no_variables_of_an_mpi_library(
    site: SlurmCluster, tmp_path: Path, model: Path
) -> None:
    folder = tmp_path / "a 'b' \"c\", #1 $x;&é"
    folder.mkdir()
    program = f"import json, os; json.dump(dict(os.environ), open('{tmp_path}/environment', 'w'))"
    (tmp_path / "program.py").write_text(program)
    words = [sys.executable, "-m", "launcher", "+cluster=slurm", "output_dir=runs", "cluster.mem=4G"]
    command = f"trainer.command=[python,{tmp_path}/program.py]"
    # The working directory holds what an override would have to quote.
    done = site.run(
        ["env", "--chdir", folder, *words, "cluster.wait=true", f"model.path={model}", command],
        timeout_s=200,
        check=False,
        PYTHONPATH=str(ROOT),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run_dir,) = [path for path in (folder / "runs").iterdir() if not path.name.startswith(".")]
    assert list((run_dir / "submitit").glob("*_0_log.out"))
    environment = json.loads((tmp_path / "environment").read_text())
    assert not [name for name in environment if name.startswith(("PMI_", "PMIX_", "SLURM_MPI"))]


def test_a_path_that_slurm_would_change_is_refused(site: SlurmCluster, tmp_path: Path) -> None:
    job = submit(site, tmp_path / "p%j", *SLEEPS)
    assert job.code == 2, job.output
    assert "`output_dir`" in job.output
    assert "'%' (SLURM puts job ids in its place)" in job.output
    assert not (tmp_path / "p%j").exists()


def test_an_array_is_split_as_the_site_demands(site: SlurmCluster, tmp_path: Path) -> None:
    sweep = ("-m", "sweep.array=true", "sweep.name=lr", "trainer.seed=1,2,3,4,5,6")
    job = submit(site, tmp_path, *SLEEPS, *sweep)
    assert job.code == 0, job.output
    sizes = re.findall(r"submitted job array \d+: (\d) runs", job.output)
    assert sizes == [str(MAX_ARRAY_SIZE), "2"], job.output
    site.cancel_all()


def test_a_cluster_that_is_chosen_by_name_is_asked_by_name(
    slurm_accounting: SlurmCluster, tmp_path: Path, model: Path
) -> None:
    chosen = ("+cluster.sbatch.clusters=test", f"model.path={model}", "snapshot=false")
    job = submit(slurm_accounting, tmp_path, *chosen, "cluster.wait=true", "trainer.command=[python,-c,pass]")
    assert job.code == 0, job.output
    assert re.fullmatch(r"\d+;test", job.job_id), job.output
    running = submit(slurm_accounting, tmp_path, *chosen, *SLEEPS)
    for command in ("status", "cancel"):
        done = slurm_accounting.run([sys.executable, "-m", "launcher", command, running.run_dir], PYTHONPATH=str(ROOT))
        assert done.returncode == 0, done.stdout
    assert slurm_accounting.job_state(running.job_id.partition(";")[0]) == "CANCELLED"


def test_a_sweep_finds_the_jobs_of_a_killed_command_on_the_cluster_that_was_chosen(
    slurm_accounting: SlurmCluster, tmp_path: Path
) -> None:
    # The first job is queued, and the command that queued it is killed before it can write down the id. Without the
    # name of the cluster this `squeue` knows no job, as the login node of another cluster.
    folder = tmp_path / "front"
    folder.mkdir()
    scripts = {
        "sbatch": f'[[ "$*" == *test-only* ]] && exec {shutil.which("sbatch")} "$@"\n'
        f'{shutil.which("sbatch")} "$@"; code=$?; mkdir {folder}/killed 2> /dev/null && kill -KILL $PPID; exit $code',
        "squeue": f'[[ "$*" == *--clusters=test* ]] || exit 0\nexec {shutil.which("squeue")} "$@"',
    }
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    env = {"PATH": f"{folder}:{slurm_accounting.env['PATH']}"}
    words = ("-m", "+cluster.sbatch.clusters=test", "+cluster.sbatch.hold=true", "snapshot=false", "trainer.seed=1,2")
    first = submit(slurm_accounting, tmp_path, *SLEEPS, *words, env=env)
    assert first.code == -9, first.output
    (lost,) = in_queue(slurm_accounting, tmp_path)
    again = submit(slurm_accounting, tmp_path, *SLEEPS, *words, env=env)
    assert again.code == 0, again.output
    assert "1 submitted" in again.output
    jobs = in_queue(slurm_accounting, tmp_path)
    assert lost in jobs
    assert len(jobs) == 2
    records = [json.loads(path.read_text().splitlines()[-1]) for path in (tmp_path / "runs").glob("*/jobs.jsonl")]
    assert {record["job_id"] for record in records} == {f"{job_id};test" for job_id in jobs}

"""A SLURM cluster: one allocation, one ``srun``, one task per node, through submitit."""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.common.errors import LauncherError, SubmissionError
from launcher.common.run_dir import SUBMITIT
from launcher.config.schema import Config
from launcher.slurm.client import noticed
from launcher.slurm.jobs import JobId, cancel_jobs, logs_of_own_jobs
from launcher.slurm.query import StateWatch
from launcher.snapshot.record import code_location
from launcher.submit.cluster import Cluster, Job, JobOutcome, job_environment
from launcher.submit.job_script import JobScript, job_script, node_python, render, set_run_dir, template_path
from launcher.submit.resources import slurm_config

TEST_TIMEOUT_S = 60.0
LATE_JOB_S = 15.0
"""A job that is queued although ``sbatch`` gave up is visible within this time."""

IN_DOUBT = ("timed out", "timeout", "unable to contact", "communication", "connection", "zero bytes")
"""In messages of an ``sbatch`` that does not know whether the controller has taken the job."""


class SbatchCluster(Cluster):
    """Submits with ``sbatch`` from this machine."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._cluster = slurm_config(config)

    def check(self) -> list[str]:
        """Tests with ``sbatch --test-only`` whether SLURM would accept the job."""
        if shutil.which("sbatch") is None:
            return [
                "`cluster` (slurm) needs `sbatch`, which is not in PATH."
                " HINT: run this on a login node, or leave out `+cluster=slurm` to run on this machine."
            ]
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "job.sh"
            script.write_text(render(self.script(Path(folder)), template_path(self._cluster)), encoding="utf-8")
            test = subprocess.Popen(
                ["sbatch", "--test-only", str(script)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                env=_submission_environment(None),
            )
            # Needed next, and there is time while SLURM thinks about it.
            importlib.import_module("launcher.submit.executor")
            try:
                with noticed("sbatch --test-only", TEST_TIMEOUT_S):
                    _, stderr = test.communicate(timeout=TEST_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                test.kill()
                test.communicate()
                return [f"`sbatch --test-only` did not answer within {TEST_TIMEOUT_S:g} s; is the controller up?"]
        if test.returncode == 0:
            return []
        return [f"SLURM would refuse the job: {error_lines(stderr)}{self._hint(stderr)}"]

    def submit(self, run_dir: Path) -> SlurmJob:
        """One job; the script is kept as ``job.sh``."""
        from launcher.submit.executor import AgentTask, TemplateExecutor

        script = self.script(run_dir)
        with submission_environment(run_dir):
            executor = TemplateExecutor(
                run_dir / SUBMITIT, script, template_path(self._cluster), node_python(self._config)
            )
            with nothing_left_queued(run_dir, script.cluster), noticed("sbatch"):
                job = executor.submit(AgentTask(run_dir))
        shutil.copyfile(job.paths.submission_file, run_dir / "job.sh")
        return SlurmJob(str(executor.job_id), Path(job.paths.stdout))

    def script(self, run_dir: Path, command: str = "true") -> JobScript:
        """The job script of a run directory that exists; submitit puts its own command in."""
        folder = run_dir / SUBMITIT
        place = code_location(run_dir)
        return job_script(
            self._config,
            run_dir=set_run_dir(run_dir),
            command=command,
            # As submitit names the log of the first task, so that it finds it.
            log=str(folder / "%j_0_log.out"),
            environment={"SUBMITIT_EXECUTOR": "slurm"},
            # `python -m` looks into the working directory first, so the shim, too, comes from the snapshot.
            directory=None if place is None else shlex.quote(str(place.directory)),
            srun=[shlex.quote(f"--output={folder / '%j_%t_log.out'}")],
        )

    def _hint(self, stderr: str) -> str:
        cluster = self._cluster
        hints = {
            "partition": f" HINT: `cluster.partition` is {cluster.partition!r}; `sinfo` lists the partitions.",
            "account": f" HINT: `cluster.account` is {cluster.account!r} and `cluster.qos` {cluster.qos!r}.",
            "node configuration": f" HINT: `layout.nodes` is {self._config.layout.nodes}, `layout.gpus_per_node`"
            f" {self._config.layout.gpus_per_node}, `cluster.gpu_request` {cluster.gpu_request!r},"
            f" `cluster.mem` {cluster.mem!r}; `sinfo --Node --long` shows what there is.",
            "node name": f" HINT: `cluster.nodelist` is {cluster.nodelist!r} and `cluster.exclude` {cluster.exclude!r};"
            " `sinfo --Node` lists the nodes.",
            "option": f" HINT: `cluster.sbatch` holds {', '.join(map(str, cluster.sbatch)) or 'nothing'}.",
            "license": f" HINT: `cluster.sbatch` holds {', '.join(map(str, cluster.sbatch)) or 'nothing'}.",
            "time limit": f" HINT: `cluster.time` is {cluster.time!r}.",
        }
        return next((hint for word, hint in hints.items() if word in stderr.lower()), "")


class SlurmJob(Job):
    """A job in SLURM's hands."""

    def __init__(self, job_id: str, log: Path) -> None:
        self.job_id = job_id
        self._watch = StateWatch(job_id)
        self._log = log

    def is_alive(self) -> bool:
        """False once SLURM reports the end of the job, or has forgotten it."""
        state = self._watch.state
        return state is not None and not state.is_final

    def wait(self, timeout_s: float) -> JobOutcome:
        """The job's own outcome."""
        deadline = time.monotonic() + timeout_s
        self._watch.expect_change()
        while self.is_alive():
            if time.monotonic() > deadline:
                if self._watch.problem is not None:
                    # As with a job that SLURM has forgotten: only the run's own record shows how it ended.
                    return JobOutcome(exit_code=1, text=f"SLURM does not answer: {self._watch.problem}")
                raise LauncherError(
                    f"Job {self.job_id} has not ended after {timeout_s:g} s:"
                    f" `squeue {JobId.parse(str(self.job_id)).words}`."
                )
            time.sleep(0.5)
        state = self._watch.state
        if state is None:
            # Whether it ended well is not known; only the run's own record shows it.
            return JobOutcome(exit_code=1, text="no longer known to SLURM")
        return JobOutcome(exit_code=state.outcome, text=state.name)

    def cancel(self) -> None:
        """``scancel``.

        Raises:
            LauncherError: it failed.
        """
        cancel_jobs([str(self.job_id)], timeout_s=TEST_TIMEOUT_S)

    def stop(self) -> None:
        """``scancel --signal=USR2``, to the tasks.

        Raises:
            LauncherError: it failed.
        """
        cancel_jobs([str(self.job_id)], signal="USR2", timeout_s=TEST_TIMEOUT_S)

    def record(self) -> dict[str, Any]:
        """Its id."""
        return {"job_id": self.job_id}

    def logs(self) -> list[Path]:
        """What the job script and the first task wrote."""
        return [self._log]


def _submission_environment(run_dir: Path | None) -> dict[str, str]:
    environ = job_environment(run_dir)
    # The GPUs of the login node are not those of the job.
    environ.pop("CUDA_VISIBLE_DEVICES", None)
    return environ


@contextmanager
def submission_environment(run_dir: Path | None) -> Iterator[None]:
    """This process's environment replaced for a while: submitit starts ``sbatch`` with it."""
    before = dict(os.environ)
    environ = _submission_environment(run_dir)
    os.environ.clear()
    os.environ.update(environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def nothing_left_queued(folder: Path, cluster: str | None) -> Iterator[None]:
    """Around an ``sbatch``: if it fails, or its output names no job, a job that is queued nevertheless is cancelled.

    Args:
        folder: the job writes its log below it, which no other job does.
        cluster: the cluster that was chosen, if any.

    Raises:
        SubmissionError: the job was refused, or its id could not be read.
    """
    from submitit.core.utils import FailedJobError

    try:
        yield
    except FailedJobError as error:
        is_in_doubt = any(word in str(error).lower() for word in IN_DOUBT)
        reason = f"sbatch refused the job: {error_lines(str(error))}"
        raise SubmissionError(reason + _withdraw(folder, cluster, is_in_doubt=is_in_doubt)) from error
    except ValueError as error:
        reason = f"The job cannot be followed: {error}."
        raise SubmissionError(reason + _withdraw(folder, cluster, is_in_doubt=True)) from error


def _withdraw(folder: Path, cluster: str | None, *, is_in_doubt: bool) -> str:
    """Cancels the jobs that log below ``folder``; a sentence about them.

    Args:
        is_in_doubt: one may have been queued, and may become visible a little later.
    """
    clusters = [None] if cluster is None else cluster.split(",")
    deadline = time.monotonic() + (LATE_JOB_S if is_in_doubt else 0.0)
    try:
        while True:
            logs = [entry for name in clusters for entry in logs_of_own_jobs(name)]
            if found := [job_id for job_id, log in logs if folder in log.parents]:
                cancel_jobs(found, timeout_s=TEST_TIMEOUT_S)
                jobs = ", ".join(found)
                return f" Job {jobs}, which was queued, is cancelled."
            if time.monotonic() > deadline:
                return " No job of this run is queued." if is_in_doubt else ""
            time.sleep(1.0)  # SLURM sends no event for a new job
    except LauncherError as error:
        if not is_in_doubt:
            return ""
        return f" HINT: it may be queued ({error}). `squeue --me --Format=JobID,STDOUT` shows it."


def error_lines(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith("Try ")]
    errors = [line for line in lines if "error" in line.lower()]
    messages = dict.fromkeys(line.split("error: ")[-1].removeprefix("sbatch: ") for line in errors or lines)
    return " ".join(line if line.endswith(".") else f"{line}." for line in messages)

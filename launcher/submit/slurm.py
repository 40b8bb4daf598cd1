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
from launcher.config.schema import Config
from launcher.slurm.client import call
from launcher.slurm.watch import StateWatch
from launcher.snapshot.place import place_of
from launcher.submit.cluster import Cluster, Job, Outcome, job_environment
from launcher.submit.job_script import JobScript, job_script, node_python, set_run_dir
from launcher.submit.resources import slurm_config
from launcher.submit.templates import render, template_path

TEST_TIMEOUT_S = 60.0

SUBMITIT = "submitit"
"""Of a run directory: what submitit keeps, and the job's own log."""


class SlurmCluster(Cluster):
    """Submits with ``sbatch`` from this machine."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._cluster = slurm_config(config)

    def check(self) -> list[str]:
        """Asks SLURM itself, with ``sbatch --test-only``, whether it would take the job."""
        if shutil.which("sbatch") is None:
            return [
                "`cluster` (slurm) needs `sbatch`, which is not in PATH."
                " HINT: run this on a login node, or leave out `+cluster=slurm` to run on this machine."
            ]
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "job.sh"
            script.write_text(render(self.script(Path(folder)), template_path(self._cluster)))
            test = subprocess.Popen(
                ["sbatch", "--test-only", str(script)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=_submission_environment(None),
            )
            # Needed next, and there is time while SLURM thinks about it.
            importlib.import_module("launcher.submit.executor")
            try:
                _, stderr = test.communicate(timeout=TEST_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                test.kill()
                test.communicate()
                return [f"`sbatch --test-only` did not answer within {TEST_TIMEOUT_S:g} s; is the controller up?"]
        if test.returncode == 0:
            return []
        return [f"SLURM would refuse the job: {last_words(stderr)}{self._hint(stderr)}"]

    def submit(self, run_dir: Path) -> SlurmJob:
        """One job; the script is kept as ``job.sh``."""
        from submitit.core.utils import FailedJobError

        from launcher.submit.executor import AgentTask, TemplateExecutor

        template = template_path(self._cluster)
        with submission_environment(run_dir):
            executor = TemplateExecutor(run_dir / SUBMITIT, self.script(run_dir), template, node_python(self._config))
            try:
                job = executor.submit(AgentTask(run_dir))
            except FailedJobError as error:
                raise SubmissionError(f"sbatch refused the job: {last_words(str(error))}") from error
        shutil.copyfile(job.paths.submission_file, run_dir / "job.sh")
        return SlurmJob(job.job_id, Path(job.paths.stdout))

    def script(self, run_dir: Path, command: str = "true") -> JobScript:
        """The job script of a run directory that exists; submitit puts its own command in."""
        folder = run_dir / SUBMITIT
        place = place_of(run_dir)
        return job_script(
            self._config,
            run_dir=set_run_dir(run_dir),
            command=command,
            # As submitit names the log of the first task, so that it finds it.
            log=str(folder / "%j_0_log.out"),
            environment={"SUBMITIT_EXECUTOR": "slurm"},
            # `python -m` looks into the working directory first, so the guard, too, comes from the snapshot.
            directory=None if place is None else shlex.quote(str(place.directory)),
            srun=[shlex.quote(f"--output={folder / '%j_%t_log.out'}")],
        )

    def _hint(self, stderr: str) -> str:
        cluster = self._cluster
        hints = {
            "partition": f" HINT: `cluster.partition` is {cluster.partition!r}; `sinfo` lists the partitions.",
            "account": f" HINT: `cluster.account` is {cluster.account!r} and `cluster.qos` {cluster.qos!r}.",
            "node configuration": f" HINT: `layout.nodes` is {self._config.layout.nodes}, `layout.gpus_per_node`"
            f" {self._config.layout.gpus_per_node}, `cluster.gpus` {cluster.gpus!r}, `cluster.mem` {cluster.mem!r};"
            " `sinfo --Node --long` shows what there is.",
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
        """False once SLURM says that the job has ended, or has forgotten it."""
        state = self._watch.state
        return state is not None and not state.is_final

    def wait(self, timeout_s: float) -> Outcome:
        """The job's own outcome."""
        deadline = time.monotonic() + timeout_s
        self._watch.expect_change()
        while self.is_alive():
            if time.monotonic() > deadline:
                raise LauncherError(
                    f"Job {self.job_id} has not ended after {timeout_s:g} s: `squeue --job {self.job_id}`."
                )
            time.sleep(0.5)
        state = self._watch.state
        if state is None:
            return Outcome(exit_code=0, text="no longer known to SLURM")
        return Outcome(exit_code=state.outcome, text=state.name)

    def cancel(self) -> None:
        """``scancel``.

        Raises:
            LauncherError: it failed.
        """
        done = subprocess.run(
            ["scancel", str(self.job_id)],
            capture_output=True,
            text=True,
            timeout=TEST_TIMEOUT_S,
            env=job_environment(),
            check=False,
        )
        if done.returncode:
            raise LauncherError(f"`scancel {self.job_id}` failed: {last_words(done.stderr)}")

    def stop(self) -> None:
        """``scancel --signal=USR2``, to the tasks.

        Raises:
            LauncherError: it failed.
        """
        done = call(["scancel", "--signal=USR2", str(self.job_id)], TEST_TIMEOUT_S)
        if done.returncode:
            raise LauncherError(f"`scancel --signal=USR2 {self.job_id}` failed: {last_words(done.stderr)}")

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
    """This process's environment replaced for a while: submitit starts ``sbatch`` with whatever is in it."""
    before = dict(os.environ)
    environ = _submission_environment(run_dir)
    os.environ.clear()
    os.environ.update(environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def last_words(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith("Try ")]
    errors = [line for line in lines if "error" in line.lower()]
    said = dict.fromkeys(line.split("error: ")[-1].removeprefix("sbatch: ") for line in errors or lines)
    return " ".join(line if line.endswith(".") else f"{line}." for line in said)

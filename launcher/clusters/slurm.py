"""A SLURM cluster: one allocation, one ``srun``, one task per node, through submitit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from launcher.clusters.base import Cluster, Job, Outcome, job_environment
from launcher.clusters.slurm_watch import StateWatch
from launcher.config.schema import Config, SlurmClusterConfig
from launcher.errors import LauncherError, SubmissionError
from launcher.snapshot.place import place_of

TEST_TIMEOUT_S = 60.0

# Made on the batch host, for each start of the job anew; no file, no argument and no log ever holds it.
TOKEN_LINE = "export LAUNCHER_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')"


@dataclass(frozen=True)
class AgentTask:
    """What submitit pickles and calls once per node: the guard of that node's agent."""

    run_dir: Path

    def __call__(self) -> None:
        """Runs this node's part of the run.

        Raises:
            SystemExit: it did not end well, which makes the task, and so the job, fail.
        """
        from launcher.agent.guard import guard_node

        code = guard_node(self.run_dir)
        if code != 0:
            # Not an error that submitit would catch and turn into exit code 1: the job's code is the run's.
            sys.exit(code)


class SlurmCluster(Cluster):
    """Submits with ``sbatch`` from this machine."""

    def __init__(self, config: Config) -> None:
        if not isinstance(config.cluster, SlurmClusterConfig):
            raise TypeError(f"not a SLURM cluster: {config.cluster.kind}")
        self._config = config
        self._cluster = config.cluster

    def check(self) -> list[str]:
        """Asks SLURM itself, with ``sbatch --test-only``, whether it would take the job."""
        if shutil.which("sbatch") is None:
            return [
                "`cluster` (slurm) needs `sbatch`, which is not in PATH."
                " HINT: run this on a login node, or leave out `+cluster=slurm` to run on this machine."
            ]
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "job.sh"
            script.write_text(self._script(Path(folder)))
            try:
                test = subprocess.run(
                    ["sbatch", "--test-only", str(script)],
                    capture_output=True,
                    text=True,
                    timeout=TEST_TIMEOUT_S,
                    env=_submission_environment(),
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return [f"`sbatch --test-only` did not answer within {TEST_TIMEOUT_S:g} s; is the controller up?"]
        if test.returncode == 0:
            return []
        return [f"SLURM would refuse the job: {_last_words(test.stderr)}{self._hint(test.stderr)}"]

    def submit(self, run_dir: Path) -> SlurmJob:
        """One job; the script is kept as ``job.sh``."""
        folder = run_dir / "submitit"
        place = place_of(run_dir)
        with _environment(_submission_environment(run_dir)):
            executor = self._executor(folder)
            if place is not None:
                # `python -m` looks into the working directory first, so the guard, too, comes from the snapshot.
                executor.parameters["additional_parameters"]["chdir"] = str(place.directory)
            try:
                job = executor.submit(AgentTask(run_dir))
            except submitit.core.utils.FailedJobError as error:
                raise SubmissionError(f"sbatch refused the job: {_last_words(str(error))}") from error
        shutil.copyfile(job.paths.submission_file, run_dir / "job.sh")
        return SlurmJob(job.job_id, Path(job.paths.stdout))

    def _executor(self, folder: Path) -> submitit.SlurmExecutor:
        cluster = self._cluster
        executor = submitit.SlurmExecutor(folder=folder, python=cluster.python)
        executor.update_parameters(
            job_name=self._config.name,
            nodes=self._config.layout.nodes,
            ntasks_per_node=1,
            stderr_to_stdout=True,
            setup=[*cluster.setup, TOKEN_LINE],
            srun_args=self._srun_arguments(),
            additional_parameters=self._parameters(),
        )
        return executor

    def _script(self, folder: Path) -> str:
        command = "true"
        return str(self._executor(folder)._make_submission_file_text(command, "test"))

    def _parameters(self) -> dict[str, Any]:
        """``#SBATCH`` options; null ones are SLURM's to choose."""
        cluster = self._cluster
        names = ("partition", "account", "qos", "time", "constraint", "exclude", "nodelist", "reservation", "mem")
        options: dict[str, Any] = {name: getattr(cluster, name) for name in (*names, "cpus_per_task")}
        options["exclusive"] = True if cluster.exclusive else None
        gpus = self._config.layout.gpus_per_node
        if self._config.layout.device == "cuda" and cluster.gpus != "none":
            request = f"{cluster.gpu_type}:{gpus}" if cluster.gpu_type else str(gpus)
            if cluster.gpus == "gres":
                options["gres"] = f"gpu:{request}"
            else:
                options["gpus_per_node"] = request
        options.update(cluster.sbatch)
        return {name.replace("-", "_"): value for name, value in options.items() if value is not None}

    def _srun_arguments(self) -> list[str]:
        cluster = self._cluster
        arguments = [
            # A node ends with an error only when it could not tell node 0, so nothing is lost by ending all at once.
            "--kill-on-bad-exit=1",
            # The token and the path of the package travel in the environment, whatever a site makes the default.
            "--export=ALL",
        ]
        if cluster.cpus_per_task is not None:
            # From 22.05 on srun does not take it over from the job.
            arguments.append(f"--cpus-per-task={cluster.cpus_per_task}")
        if cluster.container is not None:
            arguments.append(f"--container-image={cluster.container}")
        if cluster.container_mounts is not None:
            arguments.append(f"--container-mounts={cluster.container_mounts}")
        return [*arguments, *cluster.srun_args]

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
            raise LauncherError(f"`scancel {self.job_id}` failed: {_last_words(done.stderr)}")

    def record(self) -> dict[str, Any]:
        """Its id."""
        return {"job_id": self.job_id}

    def logs(self) -> list[Path]:
        """What the job script and the first task wrote."""
        return [self._log]


def _submission_environment(run_dir: Path | None = None) -> dict[str, str]:
    environ = job_environment(run_dir)
    # The GPUs of the login node are not those of the job.
    environ.pop("CUDA_VISIBLE_DEVICES", None)
    return environ


@contextmanager
def _environment(environ: dict[str, str]) -> Iterator[None]:
    """This process's environment replaced for a while: submitit starts ``sbatch`` with whatever is in it."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _last_words(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith("Try ")]
    errors = [line for line in lines if "error" in line.lower()]
    said = dict.fromkeys(line.split("error: ")[-1].removeprefix("sbatch: ") for line in errors or lines)
    return " ".join(line if line.endswith(".") else f"{line}." for line in said)

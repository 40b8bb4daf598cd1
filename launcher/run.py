"""One run, from a configuration to an exit code: check, plan, create, submit, follow."""

from __future__ import annotations

import shutil
import signal
import sys

from pathlib import Path
from types import FrameType

from launcher import run_dir as directory
from launcher.clusters.base import Cluster, Job
from launcher.config import check
from launcher.config.schema import Config
from launcher.errors import ConfigError, SubmissionError
from launcher.layout import plan
from launcher.layout.table import render_table

END_TIMEOUT_S = 60.0


def run(config: Config) -> int:
    """Starts a run; follows it if it is local or ``cluster.wait`` is true.

    Returns:
        0 if the run completed, or was queued and is not followed; the job's own exit code otherwise.

    Raises:
        ConfigError: the configuration is wrong; nothing was created.
        SubmissionError: the cluster refused the job; nothing was left behind.
    """
    check(config)
    cluster = _cluster(config)
    problems = cluster.check()
    if problems:
        raise ConfigError(problems)
    layout = plan(config)
    print(render_table(layout), flush=True)
    path = directory.create(config, layout)
    try:
        job = cluster.submit(path)
    except SubmissionError:
        shutil.rmtree(path)
        raise
    if job.job_id is not None:
        print(f"submitted job {job.job_id}", flush=True)
    print(f"run directory {path}", flush=True)
    if config.cluster.kind != "local" and not config.cluster.wait:
        print(_next_commands(path, job), flush=True)
        return 0
    return _follow(path, job)


def _cluster(config: Config) -> Cluster:
    if config.cluster.kind == "slurm":
        from launcher.clusters.slurm import SlurmCluster

        return SlurmCluster(config)
    from launcher.clusters.local import LocalCluster

    return LocalCluster(config)


def _follow(path: Path, job: Job) -> int:
    """Shows the run until its end. Ctrl-C, or SIGTERM, ends the run first and then this process."""
    from launcher.view.follow import follow
    from launcher.view.pictures import write_pictures
    from launcher.view.summary import summary

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    interrupted = False
    try:
        state = follow(path, None, sys.stdout, job.is_alive)
    except KeyboardInterrupt:
        interrupted = True
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("\nending the run ...", flush=True)
        job.cancel()
        state = follow(path, None, sys.stdout, job.is_alive)
    finally:
        signal.signal(signal.SIGTERM, previous)
    outcome = job.wait(END_TIMEOUT_S)
    write_pictures(path, state)
    print(summary(path, state), flush=True)
    if interrupted:
        return 130
    if outcome.exit_code == 0 and state.outcome != "completed":
        print(f"launcher: the job ended as {outcome.text}, but the run did not say that it completed.", file=sys.stderr)
        return 1
    return outcome.exit_code


def _next_commands(path: Path, job: Job) -> str:
    return "\n".join(
        [
            "next:",
            f"  squeue --job {job.job_id}",
            f"  tail -F {path}/attempts/1/events.jsonl",
            f"  tail -F {path}/attempts/1/logs/*.log",
            f"  scancel {job.job_id}",
        ]
    )

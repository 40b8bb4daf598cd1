"""One run, from a configuration to an exit code: check, plan, create, submit, follow."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.common.errors import STOPPED, ConfigError, SubmissionError
from launcher.common.run_dir import EXIT_CODE, attempt_dir, record_job
from launcher.common.text import command_line
from launcher.config import load_run_config
from launcher.config.schema import Config
from launcher.config.secrets import secret_values, unset_secrets
from launcher.layout import Layout, plan
from launcher.layout.table import render_table
from launcher.node.signals import StopRequest
from launcher.slurm.states import JobState
from launcher.snapshot.create import Snapshot, create_snapshot
from launcher.snapshot.record import Code
from launcher.snapshot.resolve_paths import resolve_command_paths, resolve_paths
from launcher.snapshot.store import STORE
from launcher.submit.cluster import Cluster, Job, JobOutcome
from launcher.submit.prepare import cluster_of, cpu_line, ready
from launcher.submit.run_dir import create as create_run_dir
from launcher.submit.run_dir import missing_directories, new_run_dir, remove, writing
from launcher.submit.validate import check

if TYPE_CHECKING:
    from launcher.events.run_state import RunState

END_TIMEOUT_S = 60.0
LOG_LINES = 20


def run(config: Config, *, path: Path | None = None, code: Code | None = None) -> int:
    """Starts a run; follows it if it is local or ``cluster.wait`` is true.

    Args:
        path: its directory, which does not exist; a new one if None.
        code: what it runs; the code of this moment if None.

    Returns:
        0 if the run completed, or was queued and is not followed; the job's own exit code otherwise.

    Raises:
        ConfigError: the configuration is wrong; nothing was created.
        SubmissionError: the cluster refused the job; nothing was left behind.
    """
    check(config)
    plan, cluster, problems = ready(config)
    for note in plan.notes:
        print(f"launcher: {note}", flush=True)
    if problems:
        raise ConfigError(problems)
    config = plan.config
    if config.cluster.kind != "local" and not config.cluster.wait:
        path, job = _submit(config, cluster, path, code)
        print(_next_commands(path, job), flush=True)
        return 0
    with _listening() as stop:
        path, job = _submit(config, cluster, path, code)
        return _follow(path, job, stop)


def resume(path: Path) -> tuple[Job, int | None]:
    """Starts the next attempt of a run that has ended; follows it if it is local or ``cluster.wait`` is true.

    Returns:
        The job, and the run's exit code if it was followed.

    Raises:
        ConfigError: it cannot run here, or not any more; nothing was started.
        SubmissionError: the cluster refused the job.
    """
    from launcher.observe.run_summary import newest_attempt

    config = load_run_config(path)
    cluster = cluster_of(config)
    problems = [*unset_secrets(config), *cluster.check()]
    if problems:
        raise ConfigError(problems)
    before = newest_attempt(path) or 0
    with _listening() as stop:
        job = cluster.submit(path)
        record_job(path, config.cluster.kind, job.record())
        if config.cluster.kind != "local" and not config.cluster.wait:
            return job, None
        return job, _follow(path, job, stop, after=before)


@contextmanager
def _listening() -> Iterator[StopRequest]:
    """From before there is anything to end until everything has ended."""
    stop = StopRequest()
    stop.listen((signal.SIGINT, signal.SIGTERM, signal.SIGUSR2))
    try:
        yield stop
    finally:
        stop.restore()


def create_and_submit(config: Config, cluster: Cluster, path: Path, snapshot: Code | None) -> tuple[Layout, Job]:
    """Makes the run directory ``path`` and hands it over.

    Args:
        snapshot: what :func:`snapshot_code` gave.

    Raises:
        ConfigError: the directory cannot be written.
        SubmissionError: the cluster refused the job; nothing was left behind.
    """
    new = missing_directories(path.parent)
    layout = create(config, path, snapshot)
    try:
        job = cluster.submit(path)
    except SubmissionError:
        remove(path, new)
        raise
    record_job(path, config.cluster.kind, job.record())
    return layout, job


def snapshot_code(config: Config, directory_of_code: Path | None = None) -> Snapshot | None:
    """The code as it is now, below ``output_dir``; None if it is not wanted. Runs may share it.

    Args:
        directory_of_code: where a person would stand; the working directory if None.

    Raises:
        ConfigError: it cannot be read or written.
    """
    if not config.snapshot:
        return None
    output_dir = Path(resolve_paths(config, Path.cwd()).output_dir)
    with writing(config, output_dir / STORE):
        snapshot = create_snapshot(directory_of_code or Path.cwd(), output_dir, secret_values(config.secrets))
    print(f"code {snapshot.text()}")
    return snapshot


def _submit(config: Config, cluster: Cluster, path: Path | None, code: Code | None) -> tuple[Path, Job]:
    path = path or new_run_dir(config)
    layout, job = create_and_submit(config, cluster, path, code or snapshot_code(config))
    print(render_table(layout))
    if (line := cpu_line(config)) is not None:
        print(line)
    if job.job_id is not None:
        print(f"submitted job {job.job_id}")
    print(f"run directory {path}", flush=True)
    return path, job


def create(config: Config, path: Path, snapshot: Code | None) -> Layout:
    """A run directory with the configuration, the layout, the code and the environment of the run.

    Raises:
        ConfigError: it cannot be written.
    """
    config = resolve_paths(config, Path.cwd())
    if isinstance(snapshot, Snapshot):
        config = resolve_command_paths(config, snapshot)
    layout = plan(config)
    create_run_dir(config, layout, snapshot, path)
    return layout


def _follow(path: Path, job: Job, stop: StopRequest, *, after: int = 0) -> int:
    """Shows the run until its end, from the first attempt later than ``after``.

    Ctrl-C, or SIGTERM, ends the run and then this process; a second one is ignored. SIGUSR2 lets it save first.
    """
    from launcher.observe.plots.pictures import write_pictures
    from launcher.observe.terminal.follow import follow
    from launcher.observe.terminal.summary import summary

    answered: set[signal.Signals] = set()

    def is_alive() -> bool:
        for signum in stop.signals:
            if signum not in answered:
                answered.add(signum)
                what = "saving a checkpoint and stopping" if signum is signal.SIGUSR2 else "ending the run"
                print(f"\nlauncher: {signum.name}; {what} ...", file=sys.stderr, flush=True)
                (job.stop if signum is signal.SIGUSR2 else job.cancel)()
        return job.is_alive()

    try:
        state = follow(path, None, sys.stdout, is_alive, alive_interval_s=0.2, after=after)
        outcome = job.wait(END_TIMEOUT_S)
    except BaseException:
        if job.is_alive():
            job.cancel()
        raise
    write_pictures(path, state)
    ended = JobState(name=outcome.text, exit_code=outcome.exit_code) if job.job_id is not None else None
    print(summary(path, state, ended), flush=True)
    return _exit_code(path, state, outcome, job, stop)


def _exit_code(path: Path, state: RunState, outcome: JobOutcome, job: Job, stop: StopRequest) -> int:
    """The exit code of the command that followed the run; names the logs of an end that the run could not explain.

    The run's own record decides, and the job's state where there is none: 0 is only for a run that has recorded that
    it completed.
    """
    ended_by = next((signum for signum in stop.signals if signum is not signal.SIGUSR2), None)
    if ended_by is not None:
        return 128 + ended_by
    if outcome.exit_code == STOPPED:
        print(f"\nStopped with a checkpoint. To continue:\n  {command_line('resume', path)}", flush=True)
    if state.outcome is None:
        words = f"launcher: the job ended ({outcome.text}) without a final event from its nodes."
        logs = [log for log in job.logs() if log.exists()]
        if job.job_id is not None and not logs:
            words += f" HINT: `output_dir` ({path.parent}) must be on a filesystem that every node sees; is it?"
        print(words, file=sys.stderr)
        _print_ends(logs)
        return outcome.exit_code or 1
    # A job whose script SLURM has lost is cancelled once the run is over (`launcher.node.outcome`), so the job's state
    # says less than the record; nor is a job that SLURM has forgotten, or calls COMPLETED, a success by itself.
    if state.outcome == "completed":
        return 0
    return _recorded_code(path, state) or outcome.exit_code or 1


def _recorded_code(path: Path, state: RunState) -> int | None:
    """The exit code that node 0 wrote for the job script (``attempts/N/exit_code``); None if it wrote none."""
    if state.attempt is None:
        return None
    try:
        return int((attempt_dir(path, state.attempt) / EXIT_CODE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _print_ends(logs: list[Path]) -> None:
    from launcher.node.process import tail

    for log in logs:
        print(f"Log: {log}", file=sys.stderr)
        for line in tail(log, LOG_LINES):
            print(f"    {line}", file=sys.stderr)


def _next_commands(path: Path, job: Job) -> str:
    return "\n".join(
        [
            "next:",
            f"  {command_line('status', path)}",
            f"  {command_line('logs', '-f', path)}",
            f"  {command_line('cancel', path)}",
        ]
    )

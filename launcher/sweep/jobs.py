"""What a sweep asks of SLURM beside states: a job whose id was lost, and an end to many at once."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from launcher.clusters.base import job_environment
from launcher.errors import LauncherError

CALL_TIMEOUT_S = 60.0
_ID_WIDTH, _PATH_WIDTH = 40, 1024


def find_jobs(run_dirs: Sequence[Path]) -> dict[Path, str]:
    """Jobs by run directory, whoever submitted them: each writes its log there, which no other job does.

    Raises:
        LauncherError: the controller does not answer.
    """
    fields = f"--Format=JobArrayID:{_ID_WIDTH},STDOUT:{_PATH_WIDTH}"
    done = _call(["squeue", "--noheader", "--states=all", "--array", "--me", fields])
    if done.returncode:
        raise LauncherError(f"`squeue` does not answer: {done.stderr.strip()}")
    logs = {line[:_ID_WIDTH].strip(): Path(line[_ID_WIDTH:].strip()) for line in done.stdout.splitlines()}
    wanted = set(run_dirs)
    return {parent: job_id for job_id, log in logs.items() for parent in log.parents if parent in wanted}


def cancel_jobs(job_ids: Sequence[str]) -> None:
    """Cancels jobs with one ``scancel``; those that have ended meanwhile are no error.

    Raises:
        LauncherError: it failed.
    """
    if not job_ids:
        return
    done = _call(["scancel", *job_ids])
    if done.returncode:
        raise LauncherError(f"`scancel` failed: {done.stderr.strip()}")


def _call(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=CALL_TIMEOUT_S, env=job_environment(), check=False
        )
    except FileNotFoundError as error:
        raise LauncherError(f"`{command[0]}` is not in PATH. HINT: run this on a login node.") from error
    except subprocess.TimeoutExpired as error:
        raise LauncherError(f"`{command[0]}` did not answer within {CALL_TIMEOUT_S:g} s.") from error

"""SLURM's commands through the job script, for nodes inside an image that has none of them.

The job script runs outside of the image. While its ``srun`` runs it looks twice a second for requests in a folder
of the attempt, runs the one command that each stands for, and writes what that printed beside it
(``sbatch_templates/requests.sh.j2``). A request is one line, ``show JOB``, ``requeue JOB`` or ``cancel JOB``; an
answer is the exit code in the first line, and the output below.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from launcher.common.env import LAUNCHER_EXIT_FILE

FOLDER = "slurm"
"""Beside the exit file; made by a job script that answers."""

POLL_S = 0.1


def request_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where requests are left; None in a job whose script answers none."""
    name = environ.get(LAUNCHER_EXIT_FILE)
    folder = Path(name).parent / FOLDER if name else None
    return folder if folder is not None and folder.is_dir() else None


def run_outside(
    verb: str, job_id: str, timeout_s: float, environ: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str] | None:
    """Lets the job script run one of SLURM's commands; None if it answers no requests.

    Raises:
        subprocess.TimeoutExpired: the script, or the command, did not answer in time.
    """
    folder = request_folder(environ)
    if folder is None:
        return None
    name = secrets.token_hex(8)
    request, answer = folder / f"{name}.request", folder / f"{name}.answer"
    draft = folder / f"{name}.draft"
    try:
        draft.write_text(f"{verb} {job_id}\n", encoding="utf-8")
        draft.replace(request)
    except OSError:
        return None
    deadline = time.monotonic() + timeout_s
    try:
        while (text := _read(folder, answer)) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired([verb, job_id], timeout_s)
            time.sleep(POLL_S)
    finally:
        for path in (request, answer):
            path.unlink(missing_ok=True)
    code, _, output = text.partition("\n")
    return subprocess.CompletedProcess([verb, job_id], int(code), output, output)


def _read(folder: Path, answer: Path) -> str | None:
    try:
        # A listing makes network filesystems look again instead of answering from their cache of absent names.
        list(folder.iterdir())
        return answer.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None

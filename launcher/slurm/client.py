"""Runs SLURM's own programs (``squeue``, ``scontrol``, ``scancel`` ...) with a deadline and a clean environment."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from launcher.common.env import LAUNCHER_EXIT_FILE
from launcher.common.errors import LauncherError
from launcher.common.jsonio import write_text

CALL_TIMEOUT_S = 30.0
NOTICE_S = 5.0
"""A wait for SLURM that is longer than this is reported."""

NO_SUCH_JOB = "Invalid job id"

PREFIXES = (
    *("SLURM_", "SLURMD_", "SLURMSTEPD_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_"),
    *("SCONTROL_", "SPRIO_", "PMI_", "PMIX_"),
)
"""Beginnings of the names that SLURM sets in a job, or that change what its programs do."""

KEPT = frozenset({"SLURM_CONF", "SLURM_JWT", "SLURM_CONF_SERVER"})
"""SLURM's configuration and the caller's credentials."""


class ControllerAway(LauncherError):
    """SLURM's controller does not answer, so nothing is known of what it still holds."""


def is_slurm_variable(name: str) -> bool:
    """Whether a variable belongs to an enclosing job, or would change what SLURM's programs do."""
    return name.startswith(PREFIXES) and name not in KEPT


def client_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for SLURM's programs: defaults that a person exported for them would change their output."""
    clean = {name: value for name, value in environ.items() if not is_slurm_variable(name)}
    # The format of times, and the language of messages, can be changed by a site or a person.
    return {**clean, "SLURM_TIME_FORMAT": "standard", "LC_ALL": "C.UTF-8"}


@contextmanager
def noticed(what: str, timeout_s: float | None = None) -> Iterator[None]:
    """Prints one line to standard error if the block takes longer than :data:`NOTICE_S`.

    Args:
        what: the command that the block waits for.
        timeout_s: how long it waits at most; None if there is no limit.
    """
    limit = "" if timeout_s is None else f"; at most {timeout_s:g} s"
    line = f"launcher: still waiting for SLURM (`{what}`{limit}) ..."
    timer = threading.Timer(NOTICE_S, lambda: print(line, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def call(command: list[str], timeout_s: float = CALL_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """Runs one of SLURM's programs. One that is missing, or may not be run, has exit code 127 or 126.

    Raises:
        subprocess.TimeoutExpired: it did not end within ``timeout_s``.
    """
    try:
        with noticed(" ".join(command[:3]) if command[0] == "scontrol" else command[0], timeout_s):
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout_s,
                env=client_environment(),
                check=False,
            )
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: not found")
    except PermissionError:
        return subprocess.CompletedProcess(command, 126, "", f"{command[0]}: permission denied")


def columns(line: str, widths: Iterable[int]) -> list[str]:
    """The fields of a line of fixed widths (``--Format=NAME:WIDTH``): a field may hold any character."""
    values, begin = [], 0
    for width in widths:
        values.append(line[begin : begin + width].strip())
        begin += width
    return values


def output_of(command: list[str], timeout_s: float = CALL_TIMEOUT_S) -> str:
    """What a program printed.

    Raises:
        ControllerAway: it failed, or did not end within ``timeout_s``.
    """
    shown = " ".join(command[:3])
    try:
        done = call(command, timeout_s)
    except subprocess.TimeoutExpired as error:
        raise ControllerAway(f"`{shown}` did not answer within {timeout_s:g} s.") from error
    if done.returncode:
        raise ControllerAway(f"`{shown}` fails: {' '.join(done.stderr.split())}")
    return done.stdout


FOLDER = "slurm"
"""Beside the exit file; made by a job script that answers."""

REQUEUERS = 4
"""Nodes, from the first one on, that may have to requeue the job; the others leave the controller alone."""

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
    try:
        write_text(request, f"{verb} {job_id}\n")
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

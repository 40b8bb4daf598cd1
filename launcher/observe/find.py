"""Finds the run that a person means: by path, name, beginning of a name, job id, or ``last``."""

from __future__ import annotations

import json
import re
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from launcher.common.errors import LauncherError
from launcher.common.run_dir import CONFIG, LAYOUT, SUBMISSION
from launcher.observe.run_summary import job_id_of

LAST = "last"
CANDIDATES = 8
JOB_ID = re.compile(r"\d+([_+]\d+)?")
RUN_HELP = "path of a run directory, name below the output directory, its beginning, SLURM job id, or `last`"


class RunNotFound(LauncherError):
    """No run, or more than one, is meant."""

    exit_code = 2


def add_run_argument(parser: ArgumentParser, *, default: str | None = None) -> None:
    """Adds ``RUN`` and ``--output-dir`` to a command."""
    if default is None:
        parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    else:
        parser.add_argument("run", metavar="RUN", nargs="?", default=default, help=f"{RUN_HELP} (default: {default})")
    add_output_dir(parser)


def add_output_dir(parser: ArgumentParser) -> None:
    """Adds ``--output-dir``."""
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where run directories lie, `output_dir` of the configuration (default: runs, here)",
    )


def find_run(name: str, output_dir: Path) -> Path:
    """The run directory that ``name`` means.

    Raises:
        RunNotFound: there is none, or the beginning of a name fits several; the message lists candidates.
    """
    path = Path(name)
    if is_run(path):
        return path.absolute()
    if len(path.parts) > 1 or path.is_absolute():
        raise RunNotFound(f"{name} is no run directory: it holds no {CONFIG} and {LAYOUT}.")
    runs = run_dirs(output_dir)
    by_name = {run.name: run for run in runs}
    if name in by_name:
        return by_name[name].absolute()
    if not runs:
        raise RunNotFound(f"There is no run in {output_dir}. HINT: `--output-dir` says where run directories lie.")
    if name == LAST:
        return max(runs, key=submitted_at).absolute()
    found = [run for run in runs if job_id_of(run) == name] if JOB_ID.fullmatch(name) else []
    found = found or [run for run in runs if run.name.startswith(name)]
    if len(found) == 1:
        return found[0].absolute()
    if found:
        raise RunNotFound(f"`{name}` fits {len(found)} runs in {output_dir}: {_listed(found)}.")
    raise RunNotFound(
        f"No run in {output_dir} is called, begins with, or has the job id `{name}`; the newest are: {_listed(runs)}."
        " HINT: `launcher runs --all` lists all of them."
    )


def run_dirs(output_dir: Path) -> list[Path]:
    """The run directories in ``output_dir`` and in the sweeps in it."""
    found: list[Path] = []
    for path in _directories(output_dir):
        if is_run(path):
            found.append(path)
        else:
            found += [run for run in _directories(path) if is_run(run)]
    return found


def is_run(path: Path) -> bool:
    """Whether ``path`` is a run directory."""
    return (path / LAYOUT).is_file() and (path / CONFIG).is_file()


def submitted_at(run: Path) -> float:
    """When a run directory was made, as unix seconds."""
    try:
        return float(json.loads((run / SUBMISSION).read_text(encoding="utf-8"))["time"])
    except (OSError, ValueError, KeyError, TypeError):
        # Not ours, or being written: the directory's own time is near enough to sort by.
        return run.stat().st_mtime


def _directories(path: Path) -> list[Path]:
    try:
        return [entry for entry in path.iterdir() if not entry.name.startswith(".") and entry.is_dir()]
    except OSError:
        return []


def _listed(runs: Sequence[Path]) -> str:
    newest = sorted(runs, key=submitted_at, reverse=True)
    more = f", and {len(newest) - CANDIDATES} more" if len(newest) > CANDIDATES else ""
    return ", ".join(run.name for run in newest[:CANDIDATES]) + more

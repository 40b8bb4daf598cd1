"""The run directory: what a person can read there, and where each file is."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.common.errors import ConfigError
from launcher.config import to_yaml
from launcher.config.schema import Config
from launcher.layout import Layout, layout_to_json
from launcher.snapshot.keep import Code, keep

CONFIG = "config.yaml"
LAYOUT = "layout.json"
MODEL = "model"
SUBMISSION = "submission.json"
JOBS = "jobs.jsonl"
"""One line for each time the run was handed to a cluster: what it takes to find the job again."""

EVENTS = "events.jsonl"
"""Of an attempt: its event log."""

EXIT_CODE = "exit_code"
"""Of an attempt on SLURM: the run's exit code, which node 0 writes for the job script."""

CONTROL = "control.json"
"""Of an attempt: where its control service listens."""


def new_run_dir(config: Config) -> Path:
    """A path that no other run has; nothing is made."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path(config.output_dir).absolute() / f"{config.name}-{stamp}-{secrets.token_hex(2)}"


def create(config: Config, layout: Layout, taken: Code | None = None, run_dir: Path | None = None) -> Path:
    """Makes a run directory and freezes the configuration and the layout in it. Nodes read it; they compose nothing.

    Args:
        taken: the snapshot of the code that the run's processes use; None for the code as it is when they start.
        run_dir: where; a new path if None.

    Raises:
        ConfigError: it cannot be written; nothing of it is left.
    """
    run_dir = new_run_dir(config) if run_dir is None else run_dir
    with writing(config, run_dir):
        run_dir.mkdir(parents=True)
        (run_dir / CONFIG).write_text(to_yaml(config) if taken is None else taken.config_text(config), encoding="utf-8")
        (run_dir / LAYOUT).write_text(layout_to_json(layout) + "\n", encoding="utf-8")
        keep(run_dir, taken)
        submission = {
            "time": time.time(),
            "cluster": config.cluster.kind,
            "run_dir": str(run_dir),
            "nodes": config.layout.nodes + config.layout.spares,
            **({"replay_of": taken.replay_of} if taken is not None and taken.replay_of else {}),
        }
        write_atomically(run_dir / SUBMISSION, submission)
    return run_dir


@contextmanager
def writing(config: Config, path: Path) -> Iterator[None]:
    """For writing what is to be at ``path`` in the output directory.

    Raises:
        ConfigError: it cannot be written; nothing of it is left.
    """
    new = missing_directories(path.parent)
    try:
        yield
    except OSError as error:
        remove(path, new)
        raise ConfigError(
            [
                f"`output_dir` ({config.output_dir}) cannot be written: {error.strerror}, {error.filename}."
                " HINT: set `output_dir` to a directory of your own; on SLURM to one that every node sees."
            ]
        ) from error


def missing_directories(path: Path) -> list[Path]:
    """``path`` and what is above it, as far as it does not exist, the deepest first."""
    return [directory for directory in (path, *path.parents) if not directory.exists()]


def remove(run_dir: Path, new: Sequence[Path]) -> None:
    """Takes back what :func:`create` made.

    Args:
        new: directories above it that were made for it, the deepest first; they go too, if nothing else is in them.
    """
    shutil.rmtree(run_dir, ignore_errors=True)
    for path in new:
        with contextlib.suppress(OSError):
            path.rmdir()


def read_submission(run_dir: Path) -> dict[str, Any] | None:
    """When and to which cluster a run was submitted; None if somebody started it by hand."""
    path = run_dir / SUBMISSION
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def record_job(run_dir: Path, cluster: str, job: Mapping[str, Any]) -> None:
    """Adds a job to those of the run; the last one is the current one."""
    with (run_dir / JOBS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": time.time(), "cluster": cluster, **job}) + "\n")


def last_job(run_dir: Path) -> dict[str, Any] | None:
    """The record of the newest job; None if the run was never handed to a cluster from here."""
    path = run_dir / JOBS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return dict(json.loads(lines[-1])) if lines else None


def attempt_dir(run_dir: Path, attempt: int) -> Path:
    """Where one start of the run keeps its events and logs."""
    return run_dir / "attempts" / str(attempt)


def model_path(config: Config, run_dir: Path) -> Path:
    """The directory of the model: the one given, or the one made for this run."""
    return Path(config.model.path) if config.model.path else run_dir / MODEL


def checkpoint_dir(config: Config, run_dir: Path) -> Path:
    """Where the run's checkpoints lie."""
    return Path(config.checkpoint.dir).absolute() / run_dir.name if config.checkpoint.dir else run_dir / "checkpoint"


def write_atomically(path: Path, value: Any) -> None:
    """Writes JSON so that a reader sees all of it or none."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(value) + "\n", encoding="utf-8")
    draft.replace(path)

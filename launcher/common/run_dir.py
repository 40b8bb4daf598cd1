"""The run directory: what a person can read there, and where each file is."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG = "config.yaml"
LAYOUT = "layout.json"
MODEL = "model"
SUBMISSION = "submission.json"
JOBS = "jobs.jsonl"
"""One line for each time the run was handed to a cluster: what it takes to find the job again."""

SUBMITIT = "submitit"
"""What submitit keeps of the run's jobs, and the logs of their scripts."""

EVENTS = "events.jsonl"
"""Of an attempt: its event log."""

EXIT_CODE = "exit_code"
"""Of an attempt on SLURM: the run's exit code, which node 0 writes for the job script."""

CONTROL = "control.json"
"""Of an attempt: where its control service listens."""


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


def model_path(given: str | None, run_dir: Path) -> Path:
    """The directory of the model: the one that the configuration gives (``model.path``), or the run's own."""
    return Path(given) if given else run_dir / MODEL


def checkpoint_dir(given: str | None, run_dir: Path) -> Path:
    """Where the run's checkpoints lie: below ``checkpoint.dir`` if that is given, else in the run directory."""
    return Path(given).absolute() / run_dir.name if given else run_dir / "checkpoint"


def write_atomically(path: Path, value: Any) -> None:
    """Writes JSON so that a reader sees all of it or none."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(value) + "\n", encoding="utf-8")
    draft.replace(path)

"""The run directory: what a person can read there, and where each file is."""

from __future__ import annotations

import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

from launcher.config import to_yaml
from launcher.config.schema import Config
from launcher.layout import Layout, layout_to_json

CONFIG = "config.yaml"
LAYOUT = "layout.json"
MODEL = "model"
SUBMISSION = "submission.json"


def create(config: Config, layout: Layout) -> Path:
    """Makes a new run directory and freezes the configuration and the layout in it. Nodes read it; they compose nothing."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    run_dir = Path(config.output_dir).absolute() / f"{config.name}-{stamp}-{secrets.token_hex(2)}"
    run_dir.mkdir(parents=True)
    (run_dir / CONFIG).write_text(to_yaml(config))
    (run_dir / LAYOUT).write_text(layout_to_json(layout) + "\n")
    submission = {"time": time.time(), "cluster": config.cluster.kind, "run_dir": str(run_dir)}
    write_atomically(run_dir / SUBMISSION, submission)
    return run_dir


def read_submission(run_dir: Path) -> dict[str, Any] | None:
    """When and to which cluster a run was submitted; None if somebody started it by hand."""
    path = run_dir / SUBMISSION
    return dict(json.loads(path.read_text())) if path.exists() else None


def attempt_dir(run_dir: Path, attempt: int) -> Path:
    """Where one start of the run keeps its events and logs."""
    return run_dir / "attempts" / str(attempt)


def model_path(config: Config, run_dir: Path) -> Path:
    """The directory of the model: the one given, or the one made for this run."""
    return Path(config.model.path) if config.model.path else run_dir / MODEL


def write_atomically(path: Path, value: Any) -> None:
    """Writes JSON so that a reader sees all of it or none."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(value) + "\n")
    draft.replace(path)

"""Run directories as they stand on disk, made file by file in the documented format."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from launcher.common.run_dir import last_job
from tests.unit import view_events
from tests.unit.view_events import Events

CONFIG = "name: tiny\ncluster:\n  kind: {cluster}\nlayout:\n  nodes: {nodes}\ntrainer:\n  steps: 12\n  command: null\n"


def run_dir(
    output_dir: Path,
    name: str,
    *,
    cluster: str = "slurm",
    job: dict[str, Any] | None = None,
    ago: float = 60.0,
    nodes: int = 2,
    layout: str = "{}",
) -> Path:
    """A run that was submitted ``ago`` seconds ago and has not started."""
    path = output_dir / name
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(CONFIG.format(cluster=cluster, nodes=nodes))
    (path / "layout.json").write_text(layout)
    submission = {"time": time.time() - ago, "cluster": cluster, "run_dir": str(path), "nodes": nodes}
    (path / "submission.json").write_text(json.dumps(submission) + "\n")
    if job is not None:
        add_job(path, cluster, job, ago)
    return path


def add_job(path: Path, cluster: str, job: dict[str, Any], ago: float) -> None:
    """One more submission of it."""
    with (path / "jobs.jsonl").open("a") as file:
        file.write(json.dumps({"time": time.time() - ago, "cluster": cluster, **job}) + "\n")


def started(path: Path, events: Events, *, attempt: int = 1, ago: float = 60.0) -> Path:
    """An attempt with these events, moved so that the first of them was ``ago`` seconds ago."""
    shift = time.time() - ago - events[0]["time"]
    # Node 0 writes the id of the job that it runs in.
    job = {"job_id": (last_job(path) or {}).get("job_id")}
    moved = [{**event, "time": event["time"] + shift} for event in events]
    view_events.write(path, [event | (job if event["event"] == "submitted" else {}) for event in moved], attempt)
    return path


def trained(steps: int, *, is_finished: bool, cluster: str = "slurm", planned: int = 12) -> Events:
    """A start, some steps and, if wished for, the end."""
    events = [*view_events.startup(cluster=cluster), *view_events.steps(steps, planned=planned)]
    return [*events, *view_events.ending(60 + 2 * steps)] if is_finished else events

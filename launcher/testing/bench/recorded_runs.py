"""Run directories of runs that never ran, for measuring what looks at them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path

from launcher.common.run_dir import EVENTS, SUBMISSION, attempt_dir
from launcher.config import compose
from launcher.layout import Layout, plan
from launcher.submit.run_dir import create


def make_runs(output_dir: Path, *, runs: int, nodes: int) -> list[Path]:
    """Makes run directories, each with one attempt whose nodes are up; of several, every second one has ended."""
    config = compose(
        ["layout=gpu", f"layout.nodes={nodes}", f"layout.inference_nodes={nodes // 4}", f"output_dir={output_dir}"]
    )
    config = dataclasses.replace(config, snapshot=False)
    layout = plan(config)
    first = create(config, layout)
    submission = json.loads((first / SUBMISSION).read_text(encoding="utf-8"))
    made = [first]
    for number in range(1, runs):
        path = first.with_name(f"{first.name}-{number:04d}")
        path.mkdir()
        for file in first.iterdir():
            if file.is_file():
                shutil.copyfile(file, path / file.name)
        (path / SUBMISSION).write_text(json.dumps({**submission, "run_dir": str(path)}), encoding="utf-8")
        made.append(path)
    for number, path in enumerate(made):
        _write_events(path, layout, is_over=number % 2 == 1)
    return made


def _write_events(run_dir: Path, layout: Layout, *, is_over: bool) -> None:
    now = time.time()
    sizes = {"nodes": len(layout.nodes), "trainer_nodes": len(layout.trainer_nodes)}
    sizes |= {"inference_nodes": len(layout.inference_nodes), "replicas": len(layout.replicas)}
    events = [
        {"time": now, "event": "submitted", "cluster": "local", "run_dir": str(run_dir), "job_id": None},
        {"time": now, "event": "attempt", "attempt": 1, "world_size": layout.world_size, **sizes},
        *(
            {"time": now, "event": "node_up", "node_rank": node.node_rank, "hostname": node.hostname, "role": node.role}
            | {"role_rank": node.role_rank}
            for node in layout.nodes
        ),
        {"time": now, "event": "phase", "phase": "training"},
    ]
    if is_over:
        events.append({"time": now, "event": "finished", "outcome": "completed", "seconds": 1.0})
    directory = attempt_dir(run_dir, 1)
    directory.mkdir(parents=True)
    (directory / EVENTS).write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")

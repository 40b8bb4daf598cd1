"""Run directories for a page: with a layout that fits the events, and logs."""

from __future__ import annotations

import json
from pathlib import Path

from launcher.config import compose
from launcher.layout import layout_to_json, plan
from tests.unit import view_events
from tests.unit.recorded import run_dir, started
from tests.unit.view_events import T0, Events


def page_run(
    output_dir: Path,
    name: str,
    *,
    nodes: int = 2,
    inference_nodes: int = 1,
    steps: int = 30,
    ago: float = 200.0,
    more: Events | None = None,
    job_id: str = "4711",
) -> Path:
    """A run on nodes of eight GPUs, with eight engines on each inference node, after ``steps`` of 40 steps."""
    hostnames = [f"gpu-{n:03d}" for n in range(nodes)]
    config = compose(["layout=gpu", f"layout.nodes={nodes}", f"layout.inference_nodes={inference_nodes}"])
    layout = layout_to_json(plan(config, hostnames))
    replicas = 8 * inference_nodes
    events = view_events.startup(
        trainer_nodes=nodes - inference_nodes,
        inference_nodes=inference_nodes,
        ranks=8,
        replicas=replicas,
        cluster="slurm",
    )
    for event in events:
        if event["event"] == "node_up":
            event["hostname"] = hostnames[event["node_rank"]]
    for rank in range(8 * (nodes - inference_nodes)):
        process = {"name": f"trainer-{rank:04d}", "role": "trainer", "rank": rank, "node_rank": rank // 8, "pid": 1}
        events.append({"time": T0 + 7.7, "event": "process", "state": "started", **process})
    events += [*view_events.steps(steps, planned=40), *(more or [])]
    path = run_dir(output_dir, name, job={"job_id": job_id}, ago=ago, nodes=nodes, layout=layout)
    started(path, sorted(events, key=lambda event: event["time"]), ago=ago)
    logs = path / "attempts/1/logs"
    logs.mkdir()
    (logs / "trainer-0000.log").write_text("".join(f"line {n} <b>of a log</b>\n" for n in range(1000)))
    (logs / "inference-0.log").write_text("an engine speaks\n")
    return path


def add_step(run: Path, number: int, reward: float) -> None:
    """One more step, later than all others."""
    path = run / "attempts/1/events.jsonl"
    last = json.loads(path.read_text().splitlines()[-1])["time"]
    event = {"time": last + 2, "event": "step", "step": number, "steps": 40, "reward": reward, "version": number}
    with path.open("a") as file:
        file.write(json.dumps(event) + "\n")

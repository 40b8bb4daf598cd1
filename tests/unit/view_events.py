"""Realistic event logs, made by writing events in the documented format."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from launcher.events.fold import apply_event
from launcher.events.run_state import RunState
from launcher.events.serialize import event_from_dict
from tests.unit.event_fields import check_fields

T0 = 1_767_225_600.0
"""2026-01-01 00:00:00 UTC."""

Events = list[dict[str, Any]]


def startup(
    *, trainer_nodes: int = 1, inference_nodes: int = 1, ranks: int = 2, replicas: int = 1, cluster: str = "local"
) -> Events:
    """From submission until every process waits for its first step, about 50 s later."""
    events: Events = []
    nodes = trainer_nodes + inference_nodes

    def add(at: float, event: str, **fields: Any) -> None:
        check_fields(event, fields)
        events.append({"time": T0 + at, "event": event, **fields})

    def span(begin: float, end: float, phase: str, who: str) -> None:
        add(begin, "phase", phase=phase, who=who, state="begin")
        add(end, "phase", phase=phase, who=who, state="end")

    job_id = "4711" if cluster == "slurm" else None
    add(0.0, "submitted", cluster=cluster, job_id=job_id, run_dir="runs/rl")
    add(3.5 if cluster == "slurm" else 0.6, "attempt", attempt=1, nodes=nodes, trainer_nodes=trainer_nodes)
    events[-1] |= {"inference_nodes": inference_nodes, "world_size": ranks * trainer_nodes, "replicas": replicas}
    for node in range(nodes):
        role = "trainer" if node < trainer_nodes else "inference"
        address = {"hostname": f"rack0n{node + 1:02d}", "address": f"10.0.0.{node + 1}"}
        add(4.0 + 0.2 * node, "node_up", node_rank=node, role=role, role_rank=0, **address)
    span(5.0, 7.4, "model", "prepare")
    for replica in range(replicas):
        name, ready = f"inference-{replica}", 38.0 + 2.3 * (replica % 5)
        add(7.6, "process", name=name, role="inference", node_rank=trainer_nodes, rank=replica, pid=90, state="started")
        add(7.6, "phase", phase="engine", who=name, state="begin")
        add(ready, "engine_ready", replica=replica, url=f"http://10.0.0.9:{9000 + replica}", seconds=ready - 7.6)
    for rank in range(ranks * trainer_nodes):
        name = f"trainer-{rank:04d}"
        late = 0.1 * (rank % 7)
        span(7.7, 14.0 + late, "imports", name)
        span(14.0 + late, 17.5 + late, "load", name)
        span(49.0, 51.2 + late, "bridge", name)
        add(51.2 + late, "phase", phase="first step", who=name, state="begin")
    return sorted(events, key=lambda event: event["time"])


def steps(count: int, *, begin: float = 54.0, every: float = 2.0, planned: int | None = None, first: int = 1) -> Events:
    """Steps whose reward rises from about 0.05 to about 0.9."""
    rng = random.Random(0)
    events: Events = []
    for index in range(count):
        progress = index / max((planned or count) - 1, 1)
        reward = 0.05 + 0.85 / (1 + math.exp(-9 * (progress - 0.45))) + rng.gauss(0, 0.03)
        mismatch = abs(rng.gauss(0.0021, 0.0004))
        events.append(
            {
                "time": T0 + begin + every * index,
                "event": "step",
                "step": first + index,
                "steps": planned or count,
                "version": first + index,
                "reward": round(min(max(reward, 0.0), 1.0), 4),
                "loss": round(rng.gauss(0.0, 0.04), 5),
                "tokens_per_s": round(rng.gauss(1234, 90), 1),
                "sync_s": round(0.11 + abs(rng.gauss(0, 0.02)), 4),
                "mismatch": mismatch,
                "mismatch_max": mismatch * rng.uniform(3, 7),
                "entropy": 1.1,
            }
        )
    return events


def ending(at: float) -> Events:
    """A check that passes, the engines drain, the run is completed."""
    return [
        {"time": T0 + at, "event": "check", "name": "greedy", "ok": True, "text": "64 of 64 tokens equal"},
        {"time": T0 + at + 0.2, "event": "draining"},
        {"time": T0 + at + 2.0, "event": "finished", "outcome": "completed", "seconds": at + 2.0},
    ]


def engine_killed(at: float) -> Events:
    """An engine is killed; a trainer rank fails after it; the run has failed."""
    cause: dict[str, Any] = {"message": "inference 0 on node 1 (rack0n02) ended with signal 9 (SIGKILL)"}
    cause |= {
        "role": "inference",
        "node_rank": 1,
        "rank": 0,
        "hostname": "rack0n02",
        "signal": 9,
        "log": "runs/rl/logs/inference-0.log",
    }
    victim = {"message": "trainer 1 lost an engine", "role": "trainer", "node_rank": 0, "rank": 1, "exit_code": 1}
    return [
        {"time": T0 + at, "event": "failure", **cause, "tail": ["INFO loading weights", "INFO 37% done"]},
        {"time": T0 + at + 0.3, "event": "failure", **victim, "hostname": "rack0n01", "log": "x", "tail": []},
        {"time": T0 + at + 2.0, "event": "finished", "outcome": "failed", "seconds": at + 2.0},
    ]


def write(run_dir: Path, events: Events, attempt: int = 1) -> Path:
    """Appends events to an attempt's log, as node 0 does."""
    path = run_dir / "attempts" / str(attempt) / "events.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
    return path


def apply(state: RunState, event: dict[str, Any]) -> None:
    """Folds one event as it stands in a log."""
    found = event_from_dict(event)
    if found is not None:
        apply_event(state, found)

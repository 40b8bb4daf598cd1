"""What supervision did, as every view tells it."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main
from launcher.events.run_state import RunState
from launcher.observe.terminal.plain import PlainDisplay
from launcher.observe.terminal.status_lines import replica_states
from launcher.observe.terminal.summary import gather
from tests.unit import view_events
from tests.unit.event_fields import check_fields
from tests.unit.observe.test_view_live import shown
from tests.unit.recorded import run_dir, started
from tests.unit.slurm_tools import AWAY, OFF, row, tool, tools
from tests.unit.view_events import T0, Events

__all__ = ["tools"]


def at(after: float, event: str, **fields: Any) -> dict[str, Any]:
    check_fields(event, fields)
    return {"time": T0 + after, "event": event, **fields}


CHECKS = [{"name": "gpu", "ok": True, "text": "8 GPUs"}, {"name": "disk", "ok": False, "text": "/tmp is full"}]
FIRST: Events = [
    *view_events.startup(trainer_nodes=2, inference_nodes=2, ranks=1, replicas=4, cluster="slurm"),
    *[at(4.9, "preflight", node_rank=n, hostname=f"rack0n0{n + 1}", ok=True, seconds=1, checks=[]) for n in range(4)],
    *view_events.steps(20, planned=40),
    at(70.1, "checkpoint", step=8, state="begin", path="runs/rl/checkpoint/8"),
    at(70.6, "checkpoint", step=8, state="end", path="runs/rl/checkpoint/8", seconds=0.5, bytes=1.2e9),
    at(72.0, "published", version=9, seconds=0.2, bytes=1, replicas=[0, 1, 2, 3], dropped=[]),
    at(74.0, "published", version=10, seconds=0.2, bytes=1, replicas=[0, 1, 3], dropped=[2]),
    at(74.1, "replica", replica=2, state="lost", reason="signal 9 (SIGKILL)"),
    at(
        74.2,
        "restart",
        what="engine",
        replica=2,
        counted_restarts=1,
        max_restarts=3,
        reason="signal 9 (SIGKILL)",
        delay_s=1.0,
    ),
    at(74.3, "replica", replica=2, state="restarting"),
    at(80.0, "node_lost", node_rank=1, hostname="rack0n02", role="trainer", reason="silent for 10 s"),
    at(80.1, "spare", node_rank=4, hostname="rack0n05", slot=1, role="trainer"),
    at(
        80.2, "restart", what="trainer", replica=None, counted_restarts=1, max_restarts=2, reason="node lost", delay_s=0
    ),
    at(90.0, "stopping", reason="time limit"),
    at(91.0, "requeued", reason="time limit", attempt=1),
    at(91.0, "finished", outcome="requeued", seconds=91),
]
FIRST.sort(key=lambda event: event["time"])
SECOND: Events = [
    at(200, "attempt", attempt=2, nodes=4, trainer_nodes=2, inference_nodes=2, world_size=2, replicas=4, job_id="4711"),
    at(201, "resumed", step=8, path="runs/rl/checkpoint/8"),
    at(202, "preflight", node_rank=3, hostname="rack0n04", ok=False, seconds=1, checks=CHECKS),
]


def folded(events: Events) -> RunState:
    state = RunState(run_dir="runs/rl")
    for event in events:
        view_events.apply(state, event)
    return state


def test_what_is_counted() -> None:
    state = folded(FIRST)
    assert state.versions == {0: 10, 1: 10, 3: 10}
    assert state.replica_states == {2: "restarting"}
    assert state.restarts == {"engine": 1, "trainer": 1}
    assert state.lost_nodes == {1: "rack0n02"} and state.spares == {1: "rack0n05"}
    assert state.checkpoint_step == 8 and state.stop_reason == "time limit"


def test_another_attempt_forgets_what_was_of_the_last_one() -> None:
    state = folded([*FIRST, *SECOND])
    assert state.restarts == {} and state.versions == {} and state.stop_reason is None
    assert [(past.attempt, past.outcome, past.step) for past in state.past_attempts] == [(1, "requeued", 20)]
    assert (state.resumed_step, state.checkpoint_step) == (8, 8)


def test_without_published_events_the_steps_tell_the_version() -> None:
    assert folded([*view_events.startup(replicas=2), *view_events.steps(3)]).versions == {0: 3, 1: 3}


def test_plain_lines_tell_each_once() -> None:
    stream, now = io.StringIO(), T0
    display, state = PlainDisplay(stream, clock=lambda: now), RunState(run_dir="runs/rl")
    for event in [*FIRST, *SECOND]:
        now = event["time"]
        view_events.apply(state, event)
        display.update(state)
    lines = [line.partition("  ")[2] for line in stream.getvalue().splitlines()]
    for expected in (
        "preflight passed on 4 nodes",
        "checkpoint of step 8 saved in 0.50 s, 1.2 GB",
        "version 10 did not reach inference-2",
        "inference-2 is lost: signal 9 (SIGKILL)",
        "restarting inference-2 (restart 1 of 3) in 1.0 s: signal 9 (SIGKILL)",
        "lost trainer node 1 (rack0n02): silent for 10 s",
        "spare rack0n05 takes the place of node 1",
        "restarting all trainers (restart 1 of 2): node lost",
        "stopping: time limit",
        "requeued: time limit",
        "resumed from step 8: runs/rl/checkpoint/8",
        "preflight FAILED on node 3 (rack0n04): disk: /tmp is full",
    ):
        assert lines.count(expected) == 1, expected
    assert not any("has ended" in line for line in lines)


def test_the_live_picture_shows_the_last_ones() -> None:
    text = "\n".join(shown(FIRST, 85, 100))
    assert "spare rack0n05 takes the place of node 1" in text
    assert "preflight passed" not in text


def test_the_summary_counts(tmp_path: Path) -> None:
    facts = gather(tmp_path, folded([*FIRST, *SECOND]))
    assert facts["past_attempts"] == [{"attempt": 1, "outcome": "requeued", "step": 20}]
    assert facts["checkpoint_step"] == 8
    assert gather(tmp_path, folded(FIRST))["restarts"] == {"engine": 1, "trainer": 1}


@pytest.fixture
def run(tools: Path) -> Path:
    path = run_dir(tools / "runs", "a", job={"job_id": "4711"}, nodes=4)
    tool(tools, "sacct", OFF)
    return path


def status(run: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["status", "a", "--output-dir", str(run.parent), *options]) == 0
    return capsys.readouterr().out


def test_status_of_a_run(tools: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started(run, [event for event in FIRST if event["time"] < T0 + 85])
    tool(tools, "squeue", row("4711", "RUNNING", start="2026-01-01T00:00:00"))
    lines = status(run, capsys).splitlines()
    for expected in (
        "  state       running",
        "  nodes       4/4 up; 2 trainer (rack0n01, rack0n05); 2 inference (rack0n03, rack0n04)",
        "  preflight   passed on 4",
        "  replicas    3/4 ready; restarting: inference-2",
        "  versions    10 on inference-0, inference-1, inference-3",
        "  checkpoint  of step 8",
        "  restarts    engine 1, trainer 1",
        "  lost        node 1 (rack0n02), now rack0n05",
    ):
        assert expected in lines, "\n".join(lines)
    assert "  job         4711: RUNNING, since Jan 01 00:00" in lines
    assert any(line.startswith("  step        16/40   reward 0.") and line.endswith("2.0 s a step") for line in lines)
    data = json.loads(status(run, capsys, "--json"))
    assert data["state"] == "running" and data["replicas"][2] == {"replica": 2, "state": "restarting", "version": None}
    assert data["nodes_up"]["1"] == {"hostname": "rack0n05", "role": "trainer"}


def test_status_across_attempts(tools: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started(run, FIRST, ago=500)
    started(run, SECOND, attempt=2)
    tool(tools, "squeue", row("4711", "RUNNING"))
    shown_lines = status(run, capsys)
    assert "attempts    1 requeued at step 20; 2 now, resumed from step 8" in shown_lines
    assert "preflight   passed on 0, FAILED on node 3" in shown_lines


def test_status_of_a_queued_run(tools: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 3600 * 3))
    tool(tools, "squeue", row("4711", "PENDING", start=start, reason="Resources"))
    assert "4711: PENDING, Resources, expected to start" in (text := status(run, capsys))
    assert "(in 2 h 59 min)" in text or "(in 3 h 00 min)" in text
    assert "nodes       4 nodes" in text
    tool(tools, "squeue", AWAY)
    text = status(run, capsys)
    assert "queued?" in text and "Unable to contact slurm controller" in text


def test_no_replica_starts_any_more_when_the_run_is_over() -> None:
    start = [event for event in view_events.startup(replicas=2) if event["event"] != "engine_ready"]
    assert set(replica_states(folded(start)).values()) == {"starting"}
    assert set(replica_states(folded([*start, *view_events.ending(130)])).values()) == {"ended"}

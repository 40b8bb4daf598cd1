"""Node 0's agent is killed, and with it the control service: its shim has the last word."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.common.ports import hold_free_port, port_of
from launcher.common.run_dir import claim, record_begin
from launcher.config import Config
from launcher.config.compose import to_yaml
from launcher.config.schema import SlurmClusterConfig
from launcher.control.server import ControlServer
from launcher.control.state import ControlSettings, new_state
from launcher.layout import plan
from launcher.node import failover
from launcher.node.failover import node_0_killed, run_node0_failover
from tests.unit.slurm_tools import calls, tool, tools

pytestmark = pytest.mark.slow

__all__ = ["tools"]


@pytest.fixture
def run(tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose first attempt, on SLURM, has begun; this process is on its first node."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(to_yaml(Config(cluster=SlurmClusterConfig())))
    record_begin(run_dir, claim(run_dir), "7")
    for name, value in {"JOB_ID": "7", "NODEID": "0", "JOB_NODELIST": "gpu-[01-02]", "GPUS_ON_NODE": "8"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("LAUNCHER_ATTEMPT", "1")
    tool(tools, "scontrol", "echo 'JobId=7 JobState=RUNNING Restarts=0 Reason=None EndTime=2099-01-01T00:00:00'")
    write(run_dir, {"event": "attempt", "time": 100.0})
    return run_dir


def log(run_dir: Path) -> Path:
    return run_dir / "attempts" / "1" / "events.jsonl"


def write(run_dir: Path, *events: dict[str, Any]) -> None:
    with log(run_dir).open("a") as file:
        file.writelines(json.dumps({"time": 101.0, **event}) + "\n" for event in events)


def said(run_dir: Path) -> list[tuple[str, Any]]:
    events = [json.loads(line) for line in log(run_dir).read_text().splitlines()]
    return [(event["event"], event.get("outcome")) for event in events]


def requeues(folder: Path) -> list[str]:
    return [call for call in calls(folder) if call.startswith("scontrol requeue")]


def test_the_run_is_queued_again(run: Path, tools: Path) -> None:
    assert node_0_killed(run, "The agent was killed.", 137) == 0
    assert requeues(tools) == ["scontrol requeue 7"]
    assert said(run)[1:] == [("failure", None), ("requeued", None), ("finished", "requeued")]
    assert json.loads((run / "attempts" / "1" / "end.json").read_text()) == {"end": "failed"}


def test_it_is_not_where_that_is_not_wanted(run: Path, tools: Path) -> None:
    (run / "config.yaml").write_text(to_yaml(Config(cluster=SlurmClusterConfig(requeue=False))))
    assert node_0_killed(run, "The agent was killed.", 137) == 137
    assert requeues(tools) == []
    assert said(run)[1:] == [("failure", None), ("finished", "failed")]


def test_it_is_not_more_often_than_the_limit_says(run: Path, tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(cluster=SlurmClusterConfig())
    config.restart.max_failures = 1
    (run / "config.yaml").write_text(to_yaml(config))
    assert node_0_killed(run, "The agent was killed.", 137) == 0
    record_begin(run, claim(run), "7")
    monkeypatch.setenv("LAUNCHER_ATTEMPT", "2")
    assert node_0_killed(run, "The agent was killed.", 137) == 137
    assert len(requeues(tools)) == 1


@pytest.mark.parametrize(
    "before", [{"event": "finished"}, {"event": "cancelled"}, {"event": "failure", "first": True, "message": "out"}]
)
def test_a_run_that_was_over_stays_so(run: Path, tools: Path, before: dict[str, Any]) -> None:
    write(run, before)
    assert node_0_killed(run, "The agent was killed.", 137) == 137
    assert requeues(tools) == []


class Cluster:
    """What ``scontrol show job`` says, from question to question."""

    def __init__(self, folder: Path, *lines: str) -> None:
        cases = "\n".join(f"  {index}) echo '{line}' ;;" for index, line in enumerate(lines[:-1], start=1))
        count = f"$(grep -c 'scontrol show' {folder}/calls)"
        tool(folder, "scontrol", f"case {count} in\n{cases}\n  *) echo '{lines[-1]}' ;;\nesac")


def job(nodes: str, restarts: int = 0) -> str:
    return f"JobId=7 JobState=RUNNING Restarts={restarts} Reason=None NodeList={nodes} BatchHost=gpu-01"


@pytest.fixture
def survivor(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same on the second node, quickly; node 0 does not answer."""
    monkeypatch.setenv("SLURM_NODEID", "1")
    monkeypatch.setattr(failover, "QUERY_S", 0.01)
    return run


def test_another_node_queues_again_a_job_that_has_lost_node_0(survivor: Path, tools: Path) -> None:
    Cluster(tools, job("gpu-[01-02]"), job("gpu-[01-02]"), job("gpu-02"))
    run_node0_failover(survivor, lambda: False)
    assert requeues(tools) == ["scontrol requeue 7"]
    assert said(survivor)[1:] == [("failure", None), ("requeued", None), ("finished", "requeued")]
    assert json.loads((survivor / "attempts" / "1" / "end.json").read_text()) == {"end": "lost"}


def test_a_job_that_is_not_queued_again_is_given_back(survivor: Path, tools: Path) -> None:
    (survivor / "config.yaml").write_text(to_yaml(Config(cluster=SlurmClusterConfig(requeue=False))))
    Cluster(tools, job("gpu-02"))
    tool(tools, "scancel", "")
    run_node0_failover(survivor, lambda: False)
    assert requeues(tools) == []
    assert calls(tools)[-1] == "scancel 7"
    assert said(survivor)[-1] == ("finished", "failed")


def test_none_does_for_long_once_it_was_asked_to_end(
    survivor: Path, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "LAST_S", 0.0)
    Cluster(tools, job("gpu-[01-02]"))
    run_node0_failover(survivor, lambda: True)
    assert requeues(tools) == []


def test_only_one_does(survivor: Path, tools: Path) -> None:
    Cluster(tools, job("gpu-02"))
    (survivor / "attempts" / "1" / "failover.json").touch()
    run_node0_failover(survivor, lambda: False)
    assert requeues(tools) == []


def test_none_does_for_an_attempt_that_is_over(survivor: Path, tools: Path) -> None:
    Cluster(tools, job("gpu-[01-02]"), job("gpu-[03-04]", restarts=1))
    run_node0_failover(survivor, lambda: False)
    write(survivor, {"event": "finished", "outcome": "completed"})
    Cluster(tools, job("gpu-02"))
    run_node0_failover(survivor, lambda: False)
    assert requeues(tools) == []


def test_none_does_far_from_node_0(survivor: Path, tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NODEID", "4")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu-[01-08]")
    run_node0_failover(survivor, lambda: False)
    assert calls(tools) == []


def test_none_does_if_it_was_this_node_that_was_cut_off(
    survivor: Path, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = plan(Config(), ["a", "b"])
    state = new_state(ControlSettings(layout=layout, start_timeout_s=60, lease_timeout_s=60), time.monotonic())
    sock = hold_free_port("127.0.0.1")
    server = ControlServer(state, sock, "t" * 64, log=lambda _: None)
    monkeypatch.setenv("LAUNCHER_TOKEN", "t" * 64)
    (survivor / "attempts" / "1" / "control.json").write_text(json.dumps({"control": f"127.0.0.1:{port_of(sock)}"}))
    server.start()
    try:
        run_node0_failover(survivor, lambda: False)
    finally:
        server.close()
    assert requeues(tools) == []

"""The last block says what happened and where everything is."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from launcher.observe.plots.pictures import write_pictures
from launcher.observe.terminal.summary import summary
from tests.unit import view_events
from tests.unit.view_events import T0


def test_completed(tmp_path: Path) -> None:
    path = view_events.write(tmp_path, [*view_events.startup(), *view_events.steps(60), *view_events.ending(180)])
    (path.parent / "logs").mkdir()
    (tmp_path / "checkpoint" / "final").mkdir(parents=True)
    (tmp_path / "reward.png").touch()
    text = summary(tmp_path)
    assert text.startswith("Completed after 3 min 02 s (60 of 60 steps, 2 nodes, local)\n")
    for part in (
        "0.061 -> 0.913",
        "60 published, the last is 60; sync 0.13 s",
        "passed: greedy: 64 of 64",
        "54.0 s from",
    ):
        assert part in text
    for place in (tmp_path, path.parent / "logs", tmp_path / "checkpoint" / "final", tmp_path / "reward.png"):
        assert str(place) in text
    facts = json.loads((tmp_path / "summary.json").read_text())
    assert facts["outcome"] == "completed" and facts["steps"] == 60 and facts["failure"] is None
    assert facts["versions"] == {"published": 60, "last": 60}
    assert facts["checks"] == [{"name": "greedy", "ok": True, "text": "64 of 64 tokens equal"}]


def test_failed(tmp_path: Path) -> None:
    events = [event for event in view_events.startup() if event["time"] < T0 + 30]
    view_events.write(tmp_path, [*events, *view_events.engine_killed(30)])
    text = summary(tmp_path)
    assert text.startswith("Failed after 32.0 s (0 steps")
    assert "Cause: inference 0 on node 1 (rack0n02) ended with signal 9 (SIGKILL)" in text
    assert "runs/rl/logs/inference-0.log" in text and "    | INFO 37% done" in text
    assert "Failed because of it: trainer 1 on node 0 (rack0n01)" in text
    assert json.loads((tmp_path / "summary.json").read_text())["failure"]["signal"] == 9


def test_cancelled_says_by_whom(tmp_path: Path) -> None:
    cancelled = {"time": T0 + 20, "event": "cancelled", "message": "cancelled (SIGINT)"}
    finished = {"time": T0 + 21, "event": "finished", "outcome": "cancelled"}
    view_events.write(tmp_path, [*view_events.startup()[:5], cancelled, finished])
    assert summary(tmp_path).startswith("Cancelled after 21.0 s: cancelled (SIGINT) (0 steps")


def test_without_an_end_or_without_anything(tmp_path: Path) -> None:
    assert summary(tmp_path).startswith("Nothing was recorded")
    view_events.write(tmp_path, [*view_events.startup(), *view_events.steps(3)])
    assert summary(tmp_path).startswith("Ended without a final event after 58.0 s")
    assert json.loads((tmp_path / "summary.json").read_text())["outcome"] is None


def test_numbers_that_json_has_not(tmp_path: Path) -> None:
    view_events.write(tmp_path, [{"time": T0, "event": "step", "step": 1, "reward": float("nan"), "version": 1}])
    assert "nan -> nan" in summary(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["reward"]["first"] is None


def test_a_run_directory_that_cannot_be_written_hides_nothing(tmp_path: Path) -> None:
    view_events.write(tmp_path, [*view_events.startup(), *view_events.steps(60), *view_events.ending(180)])
    for name in ("summary.json", "reward.png", "startup.png"):
        (tmp_path / name).mkdir()  # as good as a full disk
    assert write_pictures(tmp_path) == ()
    assert summary(tmp_path).startswith("Completed after 3 min 02 s")


def test_printed_commands_can_be_pasted(tmp_path: Path) -> None:
    run = tmp_path / "my runs" / "rl"
    path = view_events.write(run, [*view_events.startup(), *view_events.steps(5), *view_events.ending(70)])
    (path.parent / "logs").mkdir()
    (run / "checkpoint" / "final").mkdir(parents=True)
    commands = [line.strip() for line in summary(run).partition("\nNext\n")[2].splitlines()]
    assert commands
    assert all(any(str(run) in word for word in shlex.split(command)) for command in commands), commands

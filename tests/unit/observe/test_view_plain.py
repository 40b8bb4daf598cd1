"""Plain lines, as they stand in a log."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.events.run_state import RunState
from launcher.observe.terminal.follow import follow
from launcher.observe.terminal.plain import PlainDisplay
from tests.unit import view_events
from tests.unit.view_events import T0

GOLDEN = Path(__file__).parents[1] / "golden"
UPDATE = "Run `python -m tests.unit.observe.test_view_plain` to accept the new text, and look at its diff."


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def played(events: view_events.Events, *, until: float, every: float = 0.25) -> str:
    """What is written when the display is updated at every tick, as a follower does."""
    stream, now = io.StringIO(), T0
    display = PlainDisplay(stream, clock=lambda: now)
    state = RunState(run_dir="runs/rl", deadlines={"nodes": 300.0, "engine": 600.0, "bridge": 300.0})
    left = list(events)
    while now <= T0 + until:
        while left and left[0]["time"] <= now:
            view_events.apply(state, left.pop(0))
        display.update(state)
        now += every
    display.close()
    return stream.getvalue()


def completed() -> str:
    events = view_events.startup(trainer_nodes=2, inference_nodes=2, replicas=2, cluster="slurm")
    return played([*events, *view_events.steps(12), *view_events.ending(80)], until=90)


def failed() -> str:
    events = [event for event in view_events.startup() if event["time"] < T0 + 38.0]
    return played([*events, *view_events.engine_killed(50)], until=60)


SCENARIOS = {"completed": completed, "failed": failed}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_golden(scenario: str) -> None:
    assert SCENARIOS[scenario]() == (GOLDEN / f"view_{scenario}.txt").read_text(), UPDATE


def test_fast_steps_have_every_kth_line_and_the_last() -> None:
    text = played([*view_events.startup(), *view_events.steps(203, every=0.05)], until=70)
    shown = [int(line.split()[2].partition("/")[0]) for line in text.splitlines() if "  step " in line]
    assert shown[0] == 1 and shown[-1] == 203
    assert len(shown) < 25 and all(step % 10 == 0 for step in shown[2:-1])


def test_many_processes_do_not_make_many_lines() -> None:
    text = played(view_events.startup(trainer_nodes=64, ranks=8, inference_nodes=2, replicas=16), until=60)
    assert len(text.splitlines()) < 60


def test_lines_are_no_longer_than_a_log_can_bear() -> None:
    assert max(map(len, completed().splitlines())) <= 140


def test_follow_until_the_end_of_a_finished_run(tmp_path: Path) -> None:
    view_events.write(tmp_path, [*view_events.startup(), *view_events.steps(3), *view_events.ending(70)])
    stream = io.StringIO()
    state = follow(tmp_path, 1, stream, lambda: True)
    assert state.outcome == "completed"
    assert stream.getvalue().splitlines()[-1].endswith("completed after 72.0 s")


def test_follow_ends_when_the_run_is_gone_and_drains_what_remains(tmp_path: Path) -> None:
    asked = []

    def is_alive() -> bool:
        asked.append(True)
        view_events.write(tmp_path, view_events.steps(2))
        return False

    state = follow(tmp_path, None, io.StringIO(), is_alive, settle_s=0.3)
    assert len(asked) == 1
    assert state.outcome is None and len(state.steps) == 2


if __name__ == "__main__":
    import os

    os.environ["TZ"] = "UTC"
    time.tzset()
    GOLDEN.mkdir(exist_ok=True)
    for name, scenario in SCENARIOS.items():
        (GOLDEN / f"view_{name}.txt").write_text(scenario())

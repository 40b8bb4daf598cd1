"""Events fold into what is going on now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.common.text import duration, listed, sparkline
from launcher.events.reader import load_attempt, load_state, new_state
from launcher.events.run_state import RunState
from launcher.events.schema import EVENT_KINDS
from tests.unit import view_events
from tests.unit.view_events import T0

CONFIG = """
start_timeout_s: 300.0
inference: {ready_timeout_s: 600.0}
bridge: {timeout_s: 300.0}
trainer: {steps: 60, command: null}
"""


def folded(events: list[dict[str, Any]]) -> RunState:
    state = RunState()
    for event in events:
        view_events.apply(state, event)
    return state


def before(events: list[dict[str, Any]], at: float) -> list[dict[str, Any]]:
    return [event for event in events if event["time"] < T0 + at]


def test_replicas_become_ready_one_after_another() -> None:
    events = view_events.startup(replicas=2)
    for at, done, waiting in [(20, 0, ["inference-0", "inference-1"]), (39, 1, ["inference-1"]), (45, 2, [])]:
        groups = {group.name: group for group in folded(before(events, at)).groups()}
        assert (groups["engine"].done, groups["engine"].total) == (done, 2)
        assert groups["engine"].waiting == waiting


def test_phases_have_begin_and_end_per_process() -> None:
    state = folded(before(view_events.startup(), 16))
    load = {phase.who: (round(phase.begin - T0, 3), phase.end) for phase in state.phases if phase.name == "load"}
    assert load == {"trainer-0000": (14.0, None), "trainer-0001": (14.1, None)}
    groups = {group.name: group for group in state.groups()}
    assert not groups["nodes"].is_open and groups["nodes"].done == 2
    assert round(groups["imports"].elapsed(T0 + 99), 3) == 6.4


def test_the_stages_of_an_engine_end_when_it_is_ready() -> None:
    state = RunState()
    process = {"event": "process", "name": "inference-1", "role": "inference", "rank": 1}
    view_events.apply(state, {"time": 1.0, "state": "started", **process})
    view_events.apply(
        state, {"time": 2.0, "event": "phase", "phase": "load engine", "who": "inference-1", "state": "begin"}
    )
    view_events.apply(state, {"time": 9.0, "event": "engine_ready", "replica": 1, "url": "http://a:1", "seconds": 8.0})
    assert [(phase.name, phase.begin, phase.end) for phase in state.phases] == [
        ("engine", 1.0, 9.0),
        ("load engine", 2.0, 9.0),
    ]
    view_events.apply(state, {"time": 12.0, "state": "ended", **process})
    assert state.engines == {}


def test_steps_and_outcome() -> None:
    state = folded([*view_events.startup(), *view_events.steps(60), *view_events.ending(180)])
    assert len(state.steps) == state.steps_planned == 60
    assert state.last_step is not None and state.last_step.version == 60
    assert state.startup_seconds() == 54.0
    assert state.step_seconds() == 2.0
    assert state.outcome == "completed" and state.elapsed(0.0) == 182.0
    assert not any(group.is_open for group in state.groups())


def test_the_first_failure_is_the_cause() -> None:
    state = folded([*before(view_events.startup(), 30), *view_events.engine_killed(30)])
    assert state.failure is not None
    assert (state.failure.where, state.failure.how) == ("inference 0 on node 1 (rack0n02)", "signal 9 (SIGKILL)")
    assert [failure.role for failure in state.failures] == ["inference", "trainer"]


def test_a_new_attempt_forgets_everything_but_the_steps() -> None:
    first = [*view_events.startup(), *view_events.steps(20, planned=40), *view_events.engine_killed(100)]
    second = [event | {"time": event["time"] + 200} for event in view_events.startup()[1:]]
    second[0] |= {"attempt": 2}
    redone = view_events.steps(30, begin=260, first=11, planned=40)
    state = folded([*first, *second])
    assert state.attempt == 2 and state.failure is None and state.outcome is None and state.first_step_at is None
    state = folded([*first, *second, *redone])
    assert [step.step for step in state.steps] == list(range(1, 41))
    assert state.startup_seconds() is not None and 50 < (state.startup_seconds() or 0) < 70


def test_a_job_may_start_before_its_submission_is_recorded() -> None:
    submitted, *rest = view_events.startup(cluster="slurm")
    state = folded([*rest[:3], submitted | {"time": T0 + 4.3}, *rest[3:]])
    assert (state.job_id, state.cluster, state.attempt, state.began_at) == ("4711", "slurm", 1, T0 + 3.5)
    assert "queue" not in {phase.name for phase in state.phases}


def test_deadlines_and_steps_come_from_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    state = new_state(tmp_path)
    assert state.deadlines == {
        "nodes": 300.0,
        "engine": 600.0,
        "wait for engines": 600.0,
        "groups": 300.0,
        "first sync": 300.0,
    }
    assert state.steps_planned == 60
    (tmp_path / "config.yaml").write_text(CONFIG.replace("command: null", "command: [python, mine.py]"))
    assert new_state(tmp_path).steps_planned is None


def test_all_attempts_are_loaded_in_order(tmp_path: Path) -> None:
    view_events.write(tmp_path, [*view_events.startup(), *view_events.steps(5)], attempt=9)
    view_events.write(tmp_path, [*view_events.startup(), *view_events.steps(5, first=6)], attempt=10)
    assert len(load_state(tmp_path).steps) == 10
    assert len(load_attempt(tmp_path, 9).steps) == 5


KINDS = [*EVENT_KINDS, "unknown"]
FIELDS = ["step", "replica", "phase", "who", "state", "reward", "nodes", "rank", "exit_code", "signal", "tail", "role"]
ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(["a", 1])


@pytest.mark.slow
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(FIELDS), ANYTHING)), max_size=12))
def test_any_field_may_be_missing_or_of_another_type(events: list[tuple[str, dict[str, Any]]]) -> None:
    state = folded([{"time": float(i), "event": kind, **fields} for i, (kind, fields) in enumerate(events)])
    state.groups()
    state.elapsed(0.0)
    assert folded([{"event": "step"}, {"time": None, "event": "step"}, {}]).began_at is None


def test_words_for_times_names_and_curves() -> None:
    assert [duration(s) for s in (0.123, 41.04, 134.2, 3725.0)] == ["0.12 s", "41.0 s", "2 min 14 s", "1 h 02 min"]
    names = ["inference-10", "inference-9", "trainer-0001", "trainer-0000", "trainer-0002", "prepare", "inference-2"]
    assert listed(names) == "inference-2, inference-9, inference-10, prepare, trainer-0000..0002"
    assert sparkline([0.0, 0.5, 1.0], 8) == "▁▅█" or sparkline([0.0, 0.5, 1.0], 8) == "▁▄█"
    assert len(sparkline(list(range(1000)), 20)) == 20
    assert sparkline([1.0, float("nan"), 1.0], 5) == "▁▁" and sparkline([], 5) == ""

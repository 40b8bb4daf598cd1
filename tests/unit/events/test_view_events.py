"""The event log is read as it grows, whatever state it is in."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.events.reader import EventReader
from launcher.events.serialize import event_from_dict
from tests.unit import view_events


def test_nothing_before_the_log_exists(tmp_path: Path) -> None:
    reader = EventReader(tmp_path, 1)
    assert list(reader.read()) == []
    view_events.write(tmp_path, [{"time": 1.0, "event": "draining"}])
    assert [event.event_name for event in reader.read()] == ["draining"]
    assert list(reader.read()) == []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 5000), max_size=12))
def test_every_event_once_however_the_bytes_arrive(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    events = [*view_events.startup(), {"time": 2.0, "event": "check", "text": "naïve – 日本"}]
    data = b"".join(json.dumps(event, ensure_ascii=False).encode() + b"\n" for event in events)
    path = run_dir / "attempts" / "1" / "events.jsonl"
    path.parent.mkdir(parents=True)
    reader, seen = EventReader(run_dir, 1), []
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    for begin, end in pairwise(edges):
        with path.open("ab") as file:
            file.write(data[begin:end])
        seen += list(reader.read())
    assert seen == [event_from_dict(event) for event in events]


def test_a_torn_line_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = view_events.write(tmp_path, [{"time": 1.0, "event": "draining"}])
    with path.open("a") as file:
        file.write('{"time": 2.0, "ev\n[1]\n\n')
    view_events.write(tmp_path, [{"time": 3.0, "event": "finished"}])
    assert [event.event_name for event in EventReader(tmp_path, 1).read()] == ["draining", "finished"]
    assert len(caplog.records) == 2


def test_an_unfinished_last_line_is_no_event(tmp_path: Path) -> None:
    path = view_events.write(tmp_path, [{"time": 1.0, "event": "draining"}])
    with path.open("a") as file:
        file.write('{"time": 2.0, "event": "finished"}')
    assert len(list(EventReader(tmp_path, 1).read())) == 1


def test_moves_on_to_the_next_attempt(tmp_path: Path) -> None:
    reader = EventReader(tmp_path)
    assert list(reader.read()) == []
    view_events.write(tmp_path, [{"time": 1.0, "event": "a"}], attempt=1)
    assert [event.event_name for event in reader.read()] == ["a"]
    view_events.write(tmp_path, [{"time": 2.0, "event": "b"}], attempt=1)
    view_events.write(tmp_path, [{"time": 3.0, "event": "c"}], attempt=2)
    assert [event.event_name for event in [*reader.read(), *reader.read()]] == ["b", "c"]
    assert reader.attempt == 2


def test_a_pinned_attempt_stays(tmp_path: Path) -> None:
    reader = EventReader(tmp_path, 1)
    view_events.write(tmp_path, [{"time": 1.0, "event": "a"}], attempt=1)
    view_events.write(tmp_path, [{"time": 3.0, "event": "c"}], attempt=2)
    assert [event.event_name for event in [*reader.read(), *reader.read()]] == ["a"]

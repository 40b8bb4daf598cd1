"""The run directory: complete or not there at all."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest

from launcher.common.errors import ConfigError
from launcher.common.run_dir import read_submission
from launcher.config import compose, load_run_config
from launcher.events.log import EventLog, EventWriter
from launcher.events.schema import Event, UnknownEvent
from launcher.layout import plan
from launcher.submit.run_dir import create, missing_directories, remove


def test_it_holds_what_the_nodes_read(tmp_path: Path) -> None:
    config = compose([f"output_dir={tmp_path}", "name=first", "trainer.steps=3"])
    run_dir = create(config, plan(config))
    assert run_dir.parent == tmp_path
    assert run_dir.name.startswith("first-")
    assert load_run_config(run_dir) == config
    assert len(json.loads((run_dir / "layout.json").read_text())["nodes"]) == 2
    submission = read_submission(run_dir)
    assert submission is not None
    assert (submission["cluster"], submission["run_dir"]) == ("local", str(run_dir))


def test_two_runs_of_one_second_have_directories_of_their_own(tmp_path: Path) -> None:
    config = compose([f"output_dir={tmp_path}"])
    assert create(config, plan(config)) != create(config, plan(config))


def test_a_directory_that_cannot_be_made_is_one_problem_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = compose([f"output_dir={tmp_path}/file/runs"])
    with pytest.raises(ConfigError, match=r"`output_dir` \(.*/file/runs\) cannot be written: Not a directory"):
        create(config, plan(config))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_taking_it_back_leaves_what_was_there_before(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    config = compose([f"output_dir={tmp_path}/mine/new/runs"])
    new = missing_directories(tmp_path / "mine" / "new" / "runs")
    remove(create(config, plan(config)), new)
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
    assert not list((tmp_path / "mine").iterdir())


def test_an_event_log_whose_writer_was_killed_goes_on_on_a_new_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "a"}\n{"eve')
    log = EventLog(path)
    log.append(UnknownEvent(time=1.0, kind_name="b"))
    log.close()
    assert path.read_text() == '{"event": "a"}\n{"eve\n{"time":1.0,"event":"b"}\n'


class FullDisk(EventLog):
    """Takes only a part of the second event, then nothing for a while."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.calls = 0

    def append(self, event: Event) -> None:
        self.calls += 1
        if self.calls == 2:
            os.write(self._file.fileno(), b'{"event":"b')
            self._is_torn = True
        if 2 <= self.calls <= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().append(event)


def test_events_wait_for_a_disk_that_is_full_and_hold_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.events.log.RETRY_S", 0.01)
    path = tmp_path / "events.jsonl"
    writer = EventWriter(log := FullDisk(path))
    for name in "abc":
        writer.append(UnknownEvent(time=1.0, kind_name=name))
    deadline = time.monotonic() + 20
    while log.calls < 6:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    writer.close()
    assert path.read_text().splitlines() == [
        '{"time":1.0,"event":"a"}',
        '{"event":"b',
        '{"time":1.0,"event":"b"}',
        '{"time":1.0,"event":"c"}',
    ]

"""The fault matrix: what it strikes, and what it takes for a surprise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from launcher.faults.__main__ import table
from launcher.faults.cases import CASES, Case, Moment
from launcher.faults.inject import targets
from launcher.faults.observe import Observed, processes_of
from launcher.faults.strike import Result, judged

ENGINE_KILLED = next(case for case in CASES if case.name == "kill engine server")
SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


def judge(case: Case, tmp_path: Path, *events: dict[str, Any]) -> Result:
    timed = [{"time": 100.0 + index, **event} for index, event in enumerate(events)]
    noticed = timed[0] if timed else None
    return judged(case, Moment.STEP, tmp_path, timed, 99.5, noticed, is_hanging=False, seconds=5.0)


def test_what_the_policy_says_is_no_surprise(tmp_path: Path) -> None:
    result = judge(
        ENGINE_KILLED,
        tmp_path,
        {"event": "replica", "state": "lost"},
        {"event": "restart", "what": "engine"},
        {"event": "served", "wanted": 36, "versions": [36]},
        {"event": "finished", "outcome": "completed"},
    )
    assert result.surprises == ()
    assert result.next_state_s == 0.5
    assert result.followed == "replica lost, restart engine, finished completed"
    assert "kill engine server  mid-step" in table([result])


def test_every_other_end_is_a_surprise(tmp_path: Path) -> None:
    result = judge(
        ENGINE_KILLED,
        tmp_path,
        {"event": "restart", "what": "trainer"},
        {"event": "served", "wanted": 36, "versions": [35, 36]},
        {"event": "finished", "outcome": "failed"},
    )
    assert result.surprises == (
        "it failed, not completed",
        "no restart of the engine",
        "the trainers were restarted",
        "replicas served different versions",
    )
    assert judge(ENGINE_KILLED, tmp_path).surprises[-1] == "nothing was noticed"


def test_a_process_that_belongs_to_the_run_is_an_orphan(tmp_path: Path) -> None:
    with subprocess.Popen(SLEEP, env={**os.environ, "LAUNCHER_RUN_DIR": str(tmp_path)}, stdout=subprocess.PIPE) as left:
        assert left.stdout is not None
        left.stdout.readline()
        assert processes_of(tmp_path) == [left.pid]
        result = judge(ENGINE_KILLED, tmp_path, {"event": "finished", "outcome": "completed"})
        left.kill()
    assert result.orphans == 1
    assert "1 processes are left" in result.surprises


def test_a_target_is_found_from_a_worker(tmp_path: Path) -> None:
    parent = [sys.executable, "-c", f"import subprocess; subprocess.run({[*SLEEP, 'MarkedCore']!r})"]
    with subprocess.Popen(parent, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        assert targets(worker.pid, "self") == [worker.pid]
        assert targets(worker.pid, "agent") == [os.getpid()]
        (core,) = targets(worker.pid, "MarkedCore")
        assert core != worker.pid
        assert targets(worker.pid, "NoSuchCore") == []
        os.kill(core, 9)
        worker.wait(20)


def test_events_are_read_once_and_only_when_whole(tmp_path: Path) -> None:
    observed = Observed(tmp_path)
    assert observed.read() == []
    observed.path.parent.mkdir(parents=True)
    observed.path.write_text('{"event": "a"}\n{"event": "pro')
    assert [e["event"] for e in observed.read()] == ["a"]
    with observed.path.open("a") as file:
        file.write('cess", "name": "x", "state": "started", "pid": 7, "node_rank": 1}\n')
    assert len(observed.read()) == 1
    assert observed.pid_of("x") == (7, 1)
    assert observed.wait(lambda e: e["event"] == "a", lambda: True, 0) == {"event": "a"}
    assert observed.wait(lambda e: e["event"] == "b", lambda: True, 0) is None

"""The fault matrix: what it injects, and what it takes for a surprise."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher.events.schema import Event, StepFinished
from launcher.events.serialize import make_event
from launcher.testing.chaos.__main__ import main
from launcher.testing.chaos.cases import CASES, Case, Moment
from launcher.testing.chaos.client import version_problem
from launcher.testing.chaos.cluster import ChaosCluster
from launcher.testing.chaos.judge import CaseResult, add, evaluate, load, table
from launcher.testing.chaos.observe import ObservedRun
from launcher.testing.chaos.processes import belongs_to, processes_of, targets

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
ALL_IS_WELL = {"event": "served", "step": 2, "answers": 9, "wrong": []}


def case(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def by_attempt(events: Sequence[dict[str, Any]]) -> dict[int, list[Event]]:
    """Typed events, a second apart; ``attempt`` of each says which attempt it is of."""
    found: dict[int, list[Event]] = {}
    for index, given in enumerate(events):
        fields = {"time": 100.0 + index, "attempt": 1, **given}
        found.setdefault(fields["attempt"], []).append(make_event(fields["event"], fields, fields["time"]))
    return found


def judge(name: str, *events: dict[str, Any], leaks: tuple[str, ...] = ()) -> CaseResult:
    return evaluate(case(name), Moment.STEP, by_attempt(events), 99.5, leaks=leaks)


def test_what_the_policy_says_is_no_surprise() -> None:
    result = judge(
        "kill engine server",
        {"event": "replica", "replica": 0, "state": "lost"},
        {"event": "restart", "what": "engine"},
        ALL_IS_WELL,
        {"event": "step", "step": 2},
        {"event": "finished", "outcome": "completed"},
    )
    assert result.surprises == ()
    assert (result.next_state_s, result.back_s, result.answers) == (0.5, 3.5, 9)
    assert result.followed == "replica lost, restart engine, finished completed"
    assert "kill engine server  mid-step" in table([result])


def test_every_other_end_is_a_surprise() -> None:
    result = judge(
        "kill engine server",
        {"event": "restart", "what": "trainer"},
        {**ALL_IS_WELL, "wrong": ["versions [3], not 4 to 5"]},
        {"event": "finished", "outcome": "failed"},
        leaks=("process 7: python",),
    )
    assert result.surprises == (
        "it failed, not completed",
        "no restart engine",
        "restart trainer",
        "left behind: 1",
        "1 answers of wrong weights",
    )
    assert "no event for 30 s" in judge("kill engine server").surprises
    late = judge("kill engine server", {"event": "restart", "what": "engine", "time": 131.0})
    assert "no event for 30 s" in late.surprises


def test_a_run_that_is_queued_again_goes_on_after_its_last_checkpoint() -> None:
    first = [
        {"event": "checkpoint", "state": "end", "step": 1},
        {"event": "stopping"},
        {"event": "checkpoint", "state": "end", "step": 2},
        {"event": "finished", "outcome": "requeued"},
    ]
    second = [{"event": "attempt"}, {"event": "resumed", "step": 2}, {"event": "finished", "outcome": "completed"}]
    again = [{**event, "attempt": 2} for event in second]
    assert judge("USR2", *first, *again).surprises == ()
    lost = {"event": "resumed", "step": 1, "attempt": 2}
    assert judge("USR2", *first, again[0], lost, again[2]).surprises == ("resumed from step 1, though 2 was saved",)
    assert judge("USR2", *first).surprises == ("it requeued, not completed", "1 attempts, not 2")


def test_answers_of_every_process_that_asked_are_counted() -> None:
    steps = [(1, 4), (2, 9), (2, 3), (3, 5)]
    events = [{"event": "served", "step": step, "answers": answers, "wrong": []} for step, answers in steps]
    assert judge("kill trainer rank", *events).answers == 9 + 5


@pytest.mark.parametrize(
    ("versions", "problem"),
    [
        ((4, 4), None),
        ((4, 5), None),
        ((5, 4), "versions [5, 4] go back"),
        ((3, 4), "versions [3, 4], not 4 to 5"),
        ((6,), "versions [6], not 4 to 5"),
        ((None, 4), "weights of no version"),
    ],
)
def test_an_answer_is_of_weights_that_were_served_then(versions: tuple[int | None, ...], problem: str | None) -> None:
    assert version_problem(versions, committed=4, begun=5) == problem


def test_a_process_that_belongs_to_the_run_is_left_behind(tmp_path: Path) -> None:
    with subprocess.Popen(SLEEP, env={**os.environ, "LAUNCHER_RUN_DIR": str(tmp_path)}, stdout=subprocess.PIPE) as left:
        assert left.stdout is not None
        left.stdout.readline()
        (found,) = processes_of(tmp_path)
        assert found.startswith(f"process {left.pid}: ")
        left.kill()


def test_a_target_is_found_from_a_worker() -> None:
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


def test_only_what_belongs_to_the_run_is_signalled(tmp_path: Path) -> None:
    environ = {**os.environ, "LAUNCHER_RUN_DIR": str(tmp_path / "own")}
    with subprocess.Popen(SLEEP, env=environ, stdout=subprocess.PIPE) as target:
        assert target.stdout is not None
        target.stdout.readline()
        assert not belongs_to(target.pid, tmp_path / "other")
        words = [
            sys.executable,
            "-m",
            "launcher.testing.chaos.processes",
            "signal",
            str(tmp_path / "own"),
            str(target.pid),
            "self",
            "TERM",
        ]
        subprocess.run(words, check=True, timeout=60)
        assert target.wait(20) == -15


def test_events_of_all_attempts_are_read_once_and_only_when_whole(tmp_path: Path) -> None:
    observed = ObservedRun(tmp_path)
    assert observed.read() == []
    first, second = (tmp_path / "attempts" / number / "events.jsonl" for number in "12")
    first.parent.mkdir(parents=True)
    first.write_text(
        '{"time": 1, "event": "phase", "phase": "a", "who": "job", "state": "begin"}\n{"time": 2, "event": "pro'
    )
    assert [e.event_name for e in observed.read()] == ["phase"]
    with first.open("a") as file:
        file.write('cess", "name": "x", "state": "started", "pid": 7, "node_rank": 1}\n{"torn": \n')
    assert len(observed.read()) == 1
    started = observed.started("x")
    assert started is not None and (started[1].pid, started[0]) == (7, 1)
    second.parent.mkdir()
    second.write_text('{"time": 3, "event": "step", "step": 1}\n')
    found = observed.wait(lambda e: isinstance(e, StepFinished), lambda: True, 0)
    assert found == StepFinished(time=3.0, step=1)
    assert observed.events[2] == [found]
    assert observed.wait(lambda e: e.event_name == "c", lambda: True, 0) is None


def test_the_last_result_of_a_case_counts(tmp_path: Path) -> None:
    add(CaseResult(case="scancel", moment="mid-step", surprises=("it hangs, not cancelled",), leaks=("x",)), tmp_path)
    good = CaseResult(case="scancel", moment="mid-step", outcome="cancelled", next_state_s=0.25)
    add(good, tmp_path)
    assert load(tmp_path) == {("scancel", "mid-step"): good}
    assert "0.2 s" in (tmp_path / "faults.txt").read_text()


def test_what_a_user_cannot_do_is_asked_for() -> None:
    cluster = ChaosCluster({"cut": "ssh {node} true"}, None, None)
    assert cluster.lacks("kill") is cluster.lacks("usr2") is None
    assert cluster.lacks("cut") == "--do heal=..."
    assert cluster.lacks("preempt") == "--urgent"
    assert cluster.lacks("fill") == "--small-disk"


def test_names_are_told_apart() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    with pytest.raises(SystemExit):
        main(["--no-such-option"])

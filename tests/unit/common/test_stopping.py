"""A stop after a checkpoint, as the control service sees it; and what a trainer's program asks."""

from __future__ import annotations

import os
from typing import Any

import pytest

from launcher.config import Config, LayoutConfig
from launcher.control.phase import Phase
from launcher.control.state import JobState
from launcher.control.stopping import Stopping, StopStage
from launcher.control.values import ALL_URLS, MODEL_READY, STOP_SEEN, STORE, replica_key
from launcher.events.serialize import event_to_dict
from launcher.layout import plan
from launcher.stopping import FILE_VARIABLE, is_asked, should_stop

FAILURE = {"message": "it ended badly", "role": "trainer"}
ENGINE = {"message": "an engine ended", "role": "inference"}


class Run:
    """A job's state with a clock of its own, one trainer node and one inference node."""

    def __init__(self, *, started: bool = True) -> None:
        self.now = 0.0
        self.events: list[dict[str, Any]] = []
        self.signals: list[str] = []
        config = Config(layout=LayoutConfig(nodes=2, inference_nodes=1, gpus_per_node=1, device="cpu"))
        self.state = JobState(
            plan(config),
            lambda event: self.events.append(event_to_dict(event)),
            start_timeout_s=300,
            lease_timeout_s=1e9,
            stopping=Stopping(stop_timeout_s=60, write_timeout_s=300),
            on_signal=self.signals.append,
            clock=lambda: self.now,
        )
        if started:
            for node in range(2):
                self.state.hello(node, f"n{node}", f"10.0.0.{node}")
            for key, value in ((MODEL_READY, True), (STORE, "a:1"), (replica_key(0, "url"), "http://b:2")):
                self.state.put(key, value)
            assert ALL_URLS in self.state.values
            trainers = self.state.orders(0).trainers
            assert trainers is not None and trainers.runs

    def after(self, seconds: float) -> Phase:
        self.now += seconds
        self.state.tick()
        return self.state.phase

    def saving(self, state: str) -> None:
        self.state.emit("checkpoint", state=state, step=3)

    def ended(self, role: str, failure: dict[str, Any]) -> None:
        self.state.ended(0 if role == "trainer" else 1, role, 0, 0, 1, failure)

    def leave(self) -> None:
        self.state.node_gone(1)
        self.state.node_gone(0)


def test_the_trainer_saves_and_the_run_stops() -> None:
    run = Run()
    before = run.state.revision(1)
    run.state.stop("time limit")
    assert [run.state.orders(node).stopping for node in (0, 1)] == [StopStage.ASKED, StopStage.ASKED]
    assert run.state.revision(1) > before
    run.state.put(STOP_SEEN, True)
    assert run.state.orders(1).stopping == StopStage.SEEN
    run.saving("begin")
    assert run.after(200) is Phase.RUNNING
    run.saving("end")
    run.state.node_done(0, 0)
    assert run.state.phase is Phase.DRAINING
    run.leave()
    assert run.state.phase is Phase.STOPPED
    assert [e["reason"] for e in run.events if e["event"] == "stopping"] == ["time limit"]


def test_asked_again_nothing_changes() -> None:
    run = Run()
    run.state.stop("preemption")
    run.state.put(STOP_SEEN, True)
    run.now = 50
    for _ in range(3):
        run.state.stop("time limit")
    assert run.state.stopping.reason == "preemption"
    assert run.state.orders(0).stopping == StopStage.SEEN
    assert len([e for e in run.events if e["event"] == "stopping"]) == 1
    assert run.after(11) is Phase.STOPPED  # counted from the first time


def test_a_trainer_that_does_not_look_is_ended_in_time() -> None:
    run = Run()
    run.state.stop("request")
    assert run.after(59) is Phase.RUNNING
    assert run.after(2) is Phase.STOPPED


def test_a_checkpoint_that_never_ends_is_not_waited_for_forever() -> None:
    run = Run()
    run.state.stop("request")
    run.now = 50
    run.saving("begin")
    assert run.after(299) is Phase.RUNNING
    assert run.after(2) is Phase.STOPPED


def test_a_trainer_that_finished_meanwhile_is_finished() -> None:
    run = Run()
    run.state.stop("time limit")
    run.state.node_done(0, 0)
    run.leave()
    assert run.state.phase is Phase.FINISHED


@pytest.mark.parametrize("started", [False, True])
def test_where_nothing_trains_there_is_nothing_to_wait_for(started: bool) -> None:
    run = Run(started=False)
    if started:
        for node in range(2):
            run.state.hello(node, f"n{node}", f"10.0.0.{node}")
    run.state.stop("preemption")
    assert run.state.phase is Phase.STOPPED


def test_late_wishes_change_nothing() -> None:
    run = Run()
    run.state.node_done(0, 0)
    run.state.stop("time limit")
    assert run.state.phase is Phase.DRAINING
    run.leave()
    assert run.state.phase is Phase.FINISHED
    run = Run()
    run.state.cancel("SIGTERM")
    run.state.stop("time limit")
    assert run.state.phase is Phase.CANCELLED


def test_what_fails_on_the_way_is_left_to_the_next_attempt() -> None:
    run = Run()
    run.state.stop("preemption")
    run.ended("inference", ENGINE)
    assert run.state.phase is Phase.RUNNING
    run.ended("trainer", FAILURE)
    assert run.state.phase is Phase.STOPPED
    assert [e["event"] for e in run.events].count("failure") == 2
    assert "restart" not in [e["event"] for e in run.events]


def test_a_cancel_ends_a_run_that_is_stopping() -> None:
    run = Run()
    run.state.stop("request")
    run.saving("begin")
    run.state.cancel("SIGINT")
    assert run.state.phase is Phase.CANCELLED


def test_a_failure_waits_for_a_checkpoint_that_is_being_written() -> None:
    run = Run()
    run.saving("begin")
    run.state.fail(ENGINE)
    run.state.fail({"message": "and another"})
    assert run.after(100) is Phase.RUNNING
    run.saving("end")
    assert run.after(0.5) is Phase.FAILED
    assert run.state.failure == ENGINE
    assert [e["first"] for e in run.events if e["event"] == "failure"] == [True, False]


def test_a_failure_of_the_trainer_does_not_wait() -> None:
    run = Run()
    run.saving("begin")
    run.state.fail(FAILURE)
    assert run.state.phase is Phase.FAILED


def test_a_failure_waits_for_no_longer_than_it_may() -> None:
    run = Run()
    run.saving("begin")
    run.state.fail(ENGINE)
    assert run.after(299) is Phase.RUNNING
    assert run.after(2) is Phase.FAILED


def test_signals_are_for_node_0_to_judge() -> None:
    run = Run()
    run.state.signalled("SIGUSR2")
    assert run.signals == ["SIGUSR2"]
    assert run.state.phase is Phase.RUNNING


def test_a_program_looks_for_a_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    assert not is_asked()  # outside of a run
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "stop"))
    assert not should_stop()
    (tmp_path / "stop").touch()
    assert is_asked()
    assert "LAUNCHER_CONTROL" not in os.environ
    assert should_stop()

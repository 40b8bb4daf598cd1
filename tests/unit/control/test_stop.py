"""A stop after a checkpoint, as the control service decides it."""

from __future__ import annotations

import itertools

import pytest

from launcher.config import Config, LayoutConfig
from launcher.control.model import (
    ALL_URLS,
    MODEL_READY,
    STOP_ACKNOWLEDGED,
    STORE,
    Phase,
    StopReason,
    StopStage,
    url_key,
)
from launcher.control.state import ControlSettings
from launcher.events.schema import FailureReported
from launcher.layout import plan
from tests.unit.control.driven import DrivenRun

FAILURE = FailureReported(message="it ended badly", role="trainer")
ENGINE = FailureReported(message="an engine ended", role="inference")


class Run(DrivenRun):
    """One trainer node and one inference node."""

    def __init__(self, *, started: bool = True) -> None:
        config = Config(layout=LayoutConfig(nodes=2, inference_nodes=1, gpus_per_node=1, device="cpu"))
        super().__init__(
            ControlSettings(
                layout=plan(config),
                start_timeout_s=300,
                lease_timeout_s=1e9,
                stop_timeout_s=60,
                write_timeout_s=300,
            )
        )
        if started:
            for node in range(2):
                self.hello(node, f"n{node}", f"10.0.0.{node}")
            for key, value in ((MODEL_READY, True), (STORE, "a:1"), (url_key(0), "http://b:2")):
                self.put(key, value)
            assert ALL_URLS in self.state.values
            trainers = self.assignment(0).trainers
            assert trainers is not None and trainers.may_start

    def after(self, seconds: float) -> Phase:
        self.now += seconds
        self.tick()
        return self.phase

    def saving(self, state: str) -> None:
        self.emit("checkpoint", state=state, step=3)

    def process_ends(self, role: str, failure: FailureReported) -> None:
        self.ended(0 if role == "trainer" else 1, role, 0, 0, 1, failure)

    def leave(self) -> None:
        self.node_left(1)
        self.node_left(0)


def test_the_trainer_saves_and_the_run_stops() -> None:
    run = Run()
    before = run.state.nodes[1].revision
    run.stop(StopReason.TIME_LIMIT)
    assert [run.assignment(node).stop_stage for node in (0, 1)] == [StopStage.REQUESTED, StopStage.REQUESTED]
    assert run.state.nodes[1].revision > before
    run.put(STOP_ACKNOWLEDGED, True)
    assert run.assignment(1).stop_stage == StopStage.ACKNOWLEDGED
    run.saving("begin")
    assert run.after(200) is Phase.RUNNING
    run.saving("end")
    run.trainers_done(0, 0)
    assert run.phase is Phase.DRAINING
    run.leave()
    assert run.phase is Phase.STOPPED
    assert [e["reason"] for e in run.events if e["event"] == "stopping"] == ["time limit"]


def test_asked_again_nothing_changes() -> None:
    run = Run()
    run.stop(StopReason.PREEMPTION)
    run.put(STOP_ACKNOWLEDGED, True)
    run.now = 50
    for _ in range(3):
        run.stop(StopReason.TIME_LIMIT)
    assert run.state.stop.reason is StopReason.PREEMPTION
    assert run.assignment(0).stop_stage == StopStage.ACKNOWLEDGED
    assert len([e for e in run.events if e["event"] == "stopping"]) == 1
    assert run.after(11) is Phase.STOPPED  # counted from the first time


def test_a_trainer_that_ignores_the_request_is_ended_in_time() -> None:
    run = Run()
    run.stop(StopReason.REQUEST)
    assert run.after(59) is Phase.RUNNING
    assert run.after(2) is Phase.STOPPED


def test_a_checkpoint_that_never_ends_is_not_waited_for_forever() -> None:
    run = Run()
    run.stop(StopReason.REQUEST)
    run.now = 50
    run.saving("begin")
    assert run.after(299) is Phase.RUNNING
    assert run.after(2) is Phase.STOPPED


def test_a_trainer_that_finished_meanwhile_is_finished() -> None:
    run = Run()
    run.stop(StopReason.TIME_LIMIT)
    run.trainers_done(0, 0)
    run.leave()
    assert run.phase is Phase.FINISHED


@pytest.mark.parametrize("started", [False, True])
def test_where_nothing_trains_there_is_nothing_to_wait_for(started: bool) -> None:
    run = Run(started=False)
    if started:
        for node in range(2):
            run.hello(node, f"n{node}", f"10.0.0.{node}")
    run.stop(StopReason.PREEMPTION)
    assert run.phase is Phase.STOPPED


def test_late_requests_change_nothing() -> None:
    run = Run()
    run.trainers_done(0, 0)
    run.stop(StopReason.TIME_LIMIT)
    assert run.phase is Phase.DRAINING
    run.leave()
    assert run.phase is Phase.FINISHED
    run = Run()
    run.cancel("SIGTERM")
    run.stop(StopReason.TIME_LIMIT)
    assert run.phase is Phase.CANCELLED


def test_what_fails_on_the_way_is_left_to_the_next_attempt() -> None:
    run = Run()
    run.stop(StopReason.PREEMPTION)
    run.process_ends("inference", ENGINE)
    assert run.phase is Phase.RUNNING
    run.process_ends("trainer", FAILURE)
    assert run.phase is Phase.STOPPED
    assert [e["event"] for e in run.events].count("failure") == 2
    assert "restart" not in [e["event"] for e in run.events]


def test_a_cancel_ends_a_run_that_is_stopping() -> None:
    run = Run()
    run.stop(StopReason.REQUEST)
    run.saving("begin")
    run.cancel("SIGINT")
    assert run.phase is Phase.CANCELLED


def test_a_failure_waits_for_a_checkpoint_that_is_being_written() -> None:
    run = Run()
    run.saving("begin")
    run.fail(ENGINE)
    run.fail(FailureReported(message="and another"))
    assert run.after(100) is Phase.RUNNING
    run.saving("end")
    assert run.after(0.5) is Phase.FAILED
    assert run.state.failure == ENGINE
    assert [e["first"] for e in run.events if e["event"] == "failure"] == [True, False]


def test_a_failure_of_the_trainer_does_not_wait() -> None:
    run = Run()
    run.saving("begin")
    run.fail(FAILURE)
    assert run.phase is Phase.FAILED


def test_a_failure_waits_for_no_longer_than_it_may() -> None:
    run = Run()
    run.saving("begin")
    run.fail(ENGINE)
    assert run.after(299) is Phase.RUNNING
    assert run.after(2) is Phase.FAILED


def test_signals_are_for_node_0_to_judge() -> None:
    run = Run()
    run.signal("SIGUSR2")
    assert run.signals == ["SIGUSR2"]
    assert run.phase is Phase.RUNNING


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (StopReason.REQUEST, StopReason.PREEMPTION, StopReason.PREEMPTION),
        (StopReason.REQUEST, StopReason.TIME_LIMIT, StopReason.TIME_LIMIT),
        (StopReason.REQUEUE, StopReason.PREEMPTION, StopReason.PREEMPTION),
        (StopReason.PREEMPTION, StopReason.REQUEST, StopReason.PREEMPTION),
        (StopReason.PREEMPTION, StopReason.REQUEUE, StopReason.PREEMPTION),
        (StopReason.TIME_LIMIT, StopReason.PREEMPTION, StopReason.TIME_LIMIT),
    ],
)
def test_a_better_known_reason_replaces_the_first_one(
    first: StopReason, second: StopReason, expected: StopReason
) -> None:
    run = Run()
    run.stop(first)
    run.now = 30
    run.stop(second)
    assert run.state.stop.reason is expected
    assert [event["reason"] for event in run.logged("stopping")] == list(dict.fromkeys([first, expected]))
    assert run.assignment(0).stop_stage == StopStage.REQUESTED
    assert run.after(31) is Phase.STOPPED  # counted from the first request


def test_a_better_reason_counts_until_everybody_has_left() -> None:
    run = Run()
    run.stop(StopReason.REQUEST)
    run.put(STOP_ACKNOWLEDGED, True)
    run.trainers_done(0, 0)
    run.stop(StopReason.REQUEUE)
    run.leave()
    assert run.phase is Phase.STOPPED
    run.stop(StopReason.PREEMPTION)
    assert run.state.stop.reason is StopReason.PREEMPTION


def test_the_better_of_two_reasons_does_not_depend_on_their_order() -> None:
    for one, other in itertools.product(StopReason, repeat=2):
        assert not (one.replaces(other) and other.replaces(one))
    assert all(reason.replaces(None) for reason in StopReason)

"""What follows a loss: the run's state without any process, on a clock of its own."""

from __future__ import annotations

import pytest

from launcher.common.codec import from_json, to_json
from launcher.config.schema import Config, InferenceConfig, LayoutConfig, RestartConfig, TrainerConfig
from launcher.control.model import (
    ALL_URLS,
    CONNECTED,
    MODEL_READY,
    STORE,
    TRAINER_RESTART_COUNT,
    Assignment,
    Phase,
    ReplicaAssignment,
    TrainerAssignment,
    store_key,
    url_key,
)
from launcher.control.policy import backoff_s, counted_restarts, is_from_outside
from launcher.control.preflight_report import Finding, PreflightReport
from launcher.control.state import ControlSettings
from launcher.control.views import pool
from launcher.events.schema import FailureReported
from launcher.layout import Role, plan
from tests.unit.control.driven import DrivenRun

KILLED = -9
RAISED = 1


class Run(DrivenRun):
    """Trainer nodes first, one replica per inference node."""

    def __init__(
        self,
        *,
        nodes: int = 4,
        inference_nodes: int = 2,
        spares: int = 0,
        restart: RestartConfig | None = None,
        min_replicas: int = 1,
        tensor_parallel_size: int = 1,
        has_preflight: bool = False,
        bad_nodes_fail: bool = True,
        starts: bool = True,
    ) -> None:
        config = Config(
            layout=LayoutConfig(
                nodes=nodes, inference_nodes=inference_nodes, spares=spares, gpus_per_node=1, device="cpu"
            ),
            trainer=TrainerConfig(workers_per_node=1),
            inference=InferenceConfig(tensor_parallel_size=tensor_parallel_size),
        )
        self.layout = plan(config)
        settings = ControlSettings(
            layout=self.layout,
            start_timeout_s=60,
            lease_timeout_s=10,
            restart=restart or RestartConfig(),
            min_replicas=min_replicas,
            has_preflight=has_preflight,
            bad_nodes_fail=bad_nodes_fail,
        )
        super().__init__(settings, now=1000.0)
        if starts:
            for node in self.layout.all_nodes:
                self.joins(node.node_rank)
            self.put(MODEL_READY, True)
            self.put(STORE, "10.0.0.0:1234")
            for replica in range(len(self.layout.replicas)):
                self.listens(replica)
                self.is_ready(replica)

    def joins(self, node: int) -> None:
        self.hello(node, f"host-{node}", f"10.0.0.{node}")

    def listens(self, replica: int) -> None:
        self.put(url_key(replica), f"http://{replica}:9000")

    def is_ready(self, replica: int) -> None:
        restart_count = self.state.replicas[replica].restart_count
        self.engine_ready(replica, restart_count, f"http://{replica}:{restart_count}")

    def passes(self, seconds: float, silent: tuple[int, ...] = ()) -> None:
        """Time goes by, second by second, while every node but the silent ones sends heartbeats."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + 1.0, end)
            for node in self.layout.all_nodes:
                if node.node_rank not in silent:
                    self.heartbeat(node.node_rank)
            self.tick()

    def engine_ends(self, replica: int, exit_code: int | None = KILLED) -> None:
        record = self.state.replicas[replica]
        failure = FailureReported(message=f"engine {replica} ended with {exit_code}")
        node = self.state.slots[record.replica.node_ranks[0]]
        assert node is not None
        self.ended(node, Role.INFERENCE, replica, record.restart_count, exit_code, failure)

    def trainer_ends(self, rank: int, exit_code: int | None = KILLED, restart_count: int | None = None) -> None:
        restart_count = self.state.trainers.restart_count if restart_count is None else restart_count
        failure = FailureReported(message=f"trainer {rank} ended with {exit_code}")
        self.ended(rank, Role.TRAINER, rank, restart_count, exit_code, failure)

    def published(self, version: int, replicas: list[int], restart_count: int | None = None) -> None:
        served = {index: self.state.replicas[index].restart_count for index in replicas}
        restart_count = self.state.trainers.restart_count if restart_count is None else restart_count
        self.publishes(restart_count, version, served)

    def loses(self, node: int) -> None:
        self.node_lost(node, f"node {node} is lost")

    def engine_assignment(self, node: int, replica: int) -> ReplicaAssignment:
        return self.assignment(node).replicas[replica]

    def trainer_assignment(self, node: int) -> TrainerAssignment:
        found = self.assignment(node).trainers
        assert found is not None
        return found

    @property
    def pool(self) -> list[int]:
        """Replicas that may be sent requests."""
        return [member.replica for member in pool(self.state) if member.serves]

    @property
    def cause(self) -> str:
        assert self.state.failure is not None
        return self.state.failure.message


def test_an_engine_that_ends_starts_again_after_a_pause_and_nobody_else_does() -> None:
    run = Run()
    assert run.pool == [0, 1]
    run.notified.clear()
    run.engine_ends(0)
    assert run.pool == [1]
    assert run.notified == {2}
    assert run.engine_assignment(2, 0) == ReplicaAssignment(restart_count=1, may_start=False)
    run.passes(1)
    assert run.engine_assignment(2, 0) == ReplicaAssignment(restart_count=1, may_start=True)
    assert run.engine_assignment(3, 1).restart_count == 0
    assert run.trainer_assignment(0).restart_count == 0
    run.listens(0)
    run.is_ready(0)
    assert run.pool == [0, 1]
    (restart,) = run.logged("restart")
    assert (restart["what"], restart.get("replica"), restart["counted_restarts"], restart["max_restarts"]) == (
        "engine",
        0,
        1,
        3,
    )
    assert (restart["delay_s"], restart["reason"]) == (1.0, "engine 0 ended with -9")
    assert [event["state"] for event in run.logged("replica", replica=0)] == ["restarting", "ready"]


def test_an_engine_that_was_restarted_may_not_be_asked_before_it_has_the_last_version() -> None:
    run = Run()
    run.put(CONNECTED, True)
    run.published(7, [0, 1])
    run.engine_ends(0)
    run.passes(1)
    assert run.engine_assignment(2, 0).awaits_weights
    run.listens(0)
    run.is_ready(0)
    assert run.pool == [1]
    assert not run.logged("replica", replica=0, state="ready")
    run.published(8, [0, 1])
    assert run.pool == [0, 1]
    assert run.logged("replica", replica=0, state="ready", version=8)


def test_a_replica_that_did_not_take_a_version_is_not_asked_until_it_has_one() -> None:
    run = Run()
    run.published(1, [0, 1])
    run.published(2, [1])
    assert run.pool == [1]
    assert run.logged("published", version=2)[0]["dropped"] == [0]
    run.published(3, [0, 1])
    assert run.pool == [0, 1]


def test_what_an_earlier_start_of_an_engine_still_says_changes_nothing() -> None:
    run = Run()
    record = run.state.replicas[0]
    run.engine_ends(0)
    run.passes(1)
    run.ended(2, Role.INFERENCE, 0, 0, KILLED, FailureReported(message="late"))
    run.engine_ready(0, 0, "http://old", 1.0)
    assert record.restart_count == 1
    assert run.pool == [1]
    assert len(run.logged("restart")) == 1


def test_pauses_double_up_to_the_longest_and_old_restarts_are_forgotten() -> None:
    times: list[float] = []

    def pause(now: float) -> float:
        times[:] = counted_restarts(times, now, 100)
        found = backoff_s(len(times), 2, 10)
        times.append(now)
        return found

    assert [pause(now) for now in range(5)] == [2, 4, 8, 10, 10]
    assert len(counted_restarts(times, 5, 100)) == 5
    assert pause(102) == 8  # two of them still count
    assert pause(300) == 2
    assert backoff_s(10**9, 1, 5) == 5
    assert backoff_s(0, 1, 5) == 1


def test_an_engine_that_fails_too_often_is_left_out_while_enough_are_left() -> None:
    run = Run(restart=RestartConfig(max_engine_restarts=2, engine_backoff_s=0))
    for _ in range(2):
        run.engine_ends(0)
        run.passes(1)
        run.listens(0)
        run.is_ready(0)
    run.engine_ends(0)
    run.passes(300)
    assert run.phase is Phase.RUNNING
    assert run.logged("replica", replica=0, state="dropped")
    assert pool(run.state)[0].replica == 1
    assert not run.engine_assignment(2, 0).may_start
    for _ in range(3):
        run.engine_ends(1)
        run.passes(1)
    assert run.phase is Phase.FAILED
    assert run.cause == "engine 1 ended with -9"


def test_engines_that_never_were_ready_get_one_more_try_and_one_that_refuses_its_arguments_none() -> None:
    run = Run(nodes=2, inference_nodes=1, starts=False)
    run.joins(0)
    run.joins(1)
    run.put(MODEL_READY, True)
    run.engine_ends(0, exit_code=1)
    assert run.phase is Phase.RUNNING
    run.passes(1)
    run.engine_ends(0, exit_code=1)
    assert run.phase is Phase.FAILED
    other = Run(nodes=2, inference_nodes=1, starts=False)
    other.joins(0)
    other.joins(1)
    other.engine_ends(0, exit_code=2)
    assert other.phase is Phase.FAILED


def test_a_lost_inference_node_takes_its_replica_along_and_training_goes_on() -> None:
    run = Run()
    run.published(1, [0, 1])
    run.passes(12, silent=(2,))
    assert run.phase is Phase.RUNNING
    assert run.pool == [1]
    (lost,) = run.logged("node_lost")
    assert (lost["node_rank"], lost["hostname"], lost["role"]) == (2, "host-2", "inference")
    assert [event["state"] for event in run.logged("replica", replica=0)] == ["lost", "dropped"]
    assert not run.logged("restart")
    # It is back, and too late.
    run.heartbeat(2)
    run.joins(2)
    assert run.assignment(2) == Assignment(revision=run.state.nodes[2].revision, is_fenced=True)
    assert run.pool == [1]
    run.passes(12, silent=(3,))
    assert run.phase is Phase.FAILED
    assert "inference on node 3 (host-3): its agent has been silent" in run.cause


def test_a_node_that_is_silent_for_less_than_its_lease_goes_on_unnoticed() -> None:
    run = Run()
    before = len(run.events)
    run.passes(9, silent=(1, 2))
    run.passes(5)
    assert run.phase is Phase.RUNNING
    assert len(run.events) == before


def test_a_lost_inference_node_ends_the_run_when_too_few_replicas_would_be_left() -> None:
    run = Run(min_replicas=2)
    run.loses(3)
    assert (run.phase, run.cause) == (Phase.FAILED, "node 3 is lost")


def test_a_lost_trainer_node_without_a_spare_ends_the_run() -> None:
    run = Run()
    run.loses(1)
    assert (run.phase, run.cause) == (Phase.FAILED, "node 1 is lost")


def test_trainers_start_again_together_and_engines_stay() -> None:
    run = Run()
    run.published(5, [0, 1])
    run.notified.clear()
    run.trainer_ends(1)
    assert run.phase is Phase.RUNNING
    assert run.notified == {0, 1}
    assert [run.trainer_assignment(node).restart_count for node in (0, 1)] == [1, 1]
    # In a store of their own, where they do not meet what those before them left.
    assert not run.trainer_assignment(0).may_start
    assert run.state.values[TRAINER_RESTART_COUNT] == 1
    run.put(store_key(1), "10.0.0.0:4321")
    assert (run.trainer_assignment(0).may_start, run.trainer_assignment(0).store) == (True, "10.0.0.0:4321")
    assert [run.engine_assignment(2, 0).restart_count, run.engine_assignment(3, 1).restart_count] == [0, 0]
    (restart,) = run.logged("restart")
    assert (restart["what"], restart.get("replica"), restart["counted_restarts"], restart["max_restarts"]) == (
        "trainer",
        None,
        1,
        3,
    )
    # The other rank, which was a victim, tells of its own end now.
    run.trainer_ends(0, RAISED, restart_count=0)
    assert len(run.logged("restart")) == 1
    # A lower version of the trainers that were restarted is newer than all before.
    run.published(3, [0])
    assert run.pool == [0]
    run.published(6, [0, 1], restart_count=0)
    assert run.pool == [0]


def test_trainers_that_fail_too_often_end_the_run_with_the_last_reason() -> None:
    run = Run(restart=RestartConfig(max_trainer_restarts=2))
    for _ in range(3):
        run.passes(30)
        run.trainer_ends(0)
    assert run.phase is Phase.FAILED
    assert [event["counted_restarts"] for event in run.logged("restart")] == [1, 2]


def test_restarts_of_trainers_long_ago_do_not_count() -> None:
    run = Run(restart=RestartConfig(max_trainer_restarts=1, count_window_s=100))
    for _ in range(5):
        run.passes(101)
        run.trainer_ends(0)
    assert run.phase is Phase.RUNNING


def test_ranks_that_ended_well_start_again_with_the_others() -> None:
    run = Run()
    run.trainers_done(0, 0)
    run.trainer_ends(1)
    run.trainers_done(1, 1)
    assert run.phase is Phase.RUNNING
    run.trainers_done(0, 0)
    assert run.phase is Phase.RUNNING
    run.trainers_done(0, 1)
    assert run.phase is Phase.DRAINING


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (None, True),
        (-9, True),
        (-15, True),
        (137, True),
        (143, True),
        (1, False),
        (-11, False),
        (-6, False),
        (139, False),
    ],
)
def test_which_ends_come_from_outside(code: int | None, expected: bool) -> None:
    assert is_from_outside(code) is expected


def test_a_program_that_fails_by_itself_right_away_is_not_tried_again() -> None:
    run = Run(nodes=2, inference_nodes=1)
    run.trainer_assignment(0)
    run.trainer_ends(0, RAISED)
    assert (run.phase, run.cause) == (Phase.FAILED, "trainer 0 ended with 1")
    later = Run(nodes=2, inference_nodes=1)
    later.trainer_assignment(0)
    later.passes(61)
    later.trainer_ends(0, RAISED)
    assert later.phase is Phase.RUNNING
    stepped = Run(nodes=2, inference_nodes=1)
    stepped.trainer_assignment(0)
    stepped.emit("step", step=1)
    stepped.trainer_ends(0, RAISED)
    assert stepped.phase is Phase.RUNNING


def test_an_early_failure_waits_for_the_others_who_may_tell_the_cause() -> None:
    victim = Run()
    victim.trainer_assignment(0)
    victim.trainer_ends(0, RAISED)
    victim.trainer_ends(1, KILLED)
    victim.passes(5)
    assert victim.phase is Phase.RUNNING
    assert victim.logged("restart")[0]["reason"] == "trainer 1 ended with -9"
    cause = Run()
    cause.trainer_assignment(0)
    cause.trainer_ends(0, RAISED)
    assert cause.phase is Phase.RUNNING
    cause.passes(3)
    assert (cause.phase, cause.cause) == (Phase.FAILED, "trainer 0 ended with 1")
    lost = Run(spares=1)
    lost.trainer_assignment(0)
    lost.trainer_ends(0, RAISED)
    lost.passes(12, silent=(1,))
    assert lost.phase is Phase.RUNNING
    assert lost.logged("spare")


def test_trainers_whose_store_ended_start_again_with_a_new_one() -> None:
    run = Run()
    run.ended(0, "store", 0, 0, KILLED, FailureReported(message="store ended"))
    assert not run.trainer_assignment(0).may_start
    run.put(store_key(1), "10.0.0.0:4321")
    assert run.trainer_assignment(0) == TrainerAssignment(
        restart_count=1, may_start=True, store="10.0.0.0:4321", urls=("http://0:9000", "http://1:9000")
    )


def test_steps_that_do_not_come_are_a_failure_only_from_the_first_one_on() -> None:
    run = Run(restart=RestartConfig(step_timeout_s=20))
    run.passes(300)
    assert not run.logged("restart")
    run.emit("step", step=1)
    run.passes(19)
    assert not run.logged("restart")
    run.passes(3)
    (restart,) = run.logged("restart")
    assert restart["reason"] == "No step was finished within `restart.step_timeout_s` (20 s)."
    run.passes(300)
    assert len(run.logged("restart")) == 1


def test_a_spare_takes_the_place_of_a_lost_trainer_node() -> None:
    run = Run(spares=1)
    assert run.assignment(4) == Assignment(revision=0)
    run.trainer_assignment(0)
    run.notified.clear()
    run.loses(1)
    assert run.phase is Phase.RUNNING
    (spare,) = run.logged("spare")
    assert (spare["node_rank"], spare["hostname"], spare["slot"], spare["role"]) == (4, "host-4", 1, "trainer")
    assert run.assignment(4).slot == 1
    assert run.trainer_assignment(4) == run.trainer_assignment(0)
    assert run.trainer_assignment(4).restart_count == 1
    assert run.notified == {0, 1, 4}
    assert run.assignment(1).is_fenced
    run.trainers_done(0, 1)
    run.trainers_done(4, 1)
    assert run.phase is Phase.DRAINING


def test_a_spare_takes_the_place_of_a_lost_inference_node_without_the_trainers_noticing() -> None:
    run = Run(spares=1, min_replicas=2)
    run.published(1, [0, 1])
    run.loses(2)
    run.passes(1, silent=(2,))
    assert run.assignment(4).slot == 2
    assert run.engine_assignment(4, 0).restart_count == 1
    assert run.engine_assignment(4, 0).may_start
    assert run.trainer_assignment(0).restart_count == 0
    assert not run.logged("restart")
    run.engine_ready(0, 1, "http://4:9000", 1.0)
    run.published(2, [0, 1])
    assert run.pool == [0, 1]


def test_a_spare_that_is_lost_is_no_loss_and_is_not_used() -> None:
    run = Run(spares=2)
    run.loses(4)
    assert run.phase is Phase.RUNNING
    assert run.logged("node_lost")[0]["role"] == "spare"
    run.loses(1)
    assert run.assignment(5).slot == 1
    run.loses(5)
    assert run.phase is Phase.FAILED


def test_a_replica_over_several_nodes_restarts_on_all_of_them_with_a_new_meeting_point() -> None:
    run = Run(nodes=3, inference_nodes=2, tensor_parallel_size=2)
    run.master(0, 0, "10.0.0.1:5000")
    assert run.engine_assignment(2, 0).master == "10.0.0.1:5000"
    run.ended(2, Role.INFERENCE, 0, 0, KILLED, FailureReported(message="part 1 ended"))
    run.passes(1)
    restarted = ReplicaAssignment(restart_count=1, may_start=True)
    assert run.engine_assignment(1, 0) == run.engine_assignment(2, 0) == restarted
    run.master(0, 0, "10.0.0.1:5000")
    assert run.engine_assignment(2, 0).master is None
    run.master(0, 1, "10.0.0.1:5001")
    assert run.engine_assignment(2, 0).master == "10.0.0.1:5001"


def test_nodes_that_never_report_are_replaced_if_spares_did() -> None:
    run = Run(spares=1, starts=False)
    for node in (0, 2, 3, 4):
        run.joins(node)
    assert run.phase is Phase.STARTING
    run.passes(61, silent=(1,))
    assert run.phase is Phase.RUNNING
    assert run.assignment(4).slot == 1
    assert not run.logged("restart")


def test_an_inference_node_that_never_reports_is_left_out() -> None:
    run = Run(starts=False)
    for node in (0, 1, 3):
        run.joins(node)
    run.passes(61, silent=(2,))
    assert run.phase is Phase.RUNNING
    run.put(MODEL_READY, True)
    run.put(STORE, "s:1")
    run.listens(1)
    assert run.state.values[ALL_URLS] == ["http://1:9000"]
    assert run.trainer_assignment(0).may_start


def test_a_spare_takes_the_place_of_a_node_that_preflight_finds_bad() -> None:
    run = Run(spares=2, has_preflight=True, starts=False)
    for node in range(6):
        run.joins(node)
    assert run.phase is Phase.CHECKING
    for node in range(6):
        ok = node not in (2, 4)
        run.preflight(
            PreflightReport(node_rank=node, seconds=1, findings=(Finding(name="gpus", ok=ok, text="7 of 8 GPUs"),))
        )
    assert run.phase is Phase.RUNNING
    assert run.assignment(5).slot == 2
    assert run.assignment(2).is_fenced
    assert run.assignment(4).is_fenced
    assert {event["node_rank"] for event in run.logged("node_lost")} == {2, 4}
    assert [bad.node_rank for bad in run.state.preflight.bad_nodes] == [2, 4]


def test_once_the_trainers_are_done_nothing_is_started_again() -> None:
    run = Run()
    run.trainers_done(0, 0)
    run.trainers_done(1, 0)
    run.engine_ends(0)
    run.loses(3)
    assert run.phase is Phase.DRAINING
    assert not run.logged("restart")
    for node in (0, 1, 2):
        run.node_left(node)
    assert run.phase is Phase.FINISHED


def test_assignments_survive_the_network() -> None:
    run = Run(spares=1)
    for node in range(5):
        found = run.assignment(node)
        assert from_json(to_json(found), Assignment) == found

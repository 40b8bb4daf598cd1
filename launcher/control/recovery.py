"""What follows a loss: the row of the policy that applies, carried out on the state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from launcher.control.effects import Effects, LogEvent
from launcher.control.ending import enter, fail, mark_dirty, mark_nodes_dirty
from launcher.control.model import ENDED, TRAINER_RESTART_COUNT, Phase, StopStage
from launcher.control.policy import (
    REFUSED,
    Decision,
    Loss,
    When,
    counted_restarts,
    decide,
    is_from_outside,
)
from launcher.control.protocol import NodeLeftRequest, NodeLostRequest, ProcessEndedRequest
from launcher.control.replicas import (
    drop_replica,
    gather_urls,
    move_replica,
    restart_limit,
    restart_replica,
    restarts_that_count,
)
from launcher.control.state import ControlState, ReplicaRecord
from launcher.control.views import all_nodes_left, free_spares, kept_replicas, replicas_on, role_of
from launcher.events.failure_kinds import FailureKind
from launcher.events.schema import FailureReported, NodeLost, ReplicaChanged, RestartScheduled, SpareAssigned
from launcher.layout.model import Role

HOLD_S = 1.5
"""A rank that fails early may only be the first to notice another's end; the others get so long to report theirs."""


def process_ended(state: ControlState, request: ProcessEndedRequest, now: float) -> Effects:
    """A process ended that should not have, or not like this; or it hung."""
    if state.phase in ENDED or state.phase is Phase.DRAINING or state.nodes[request.node_rank].is_lost:
        return
    if request.role == Role.INFERENCE:
        record = state.replicas[request.rank]
        if request.restart_count == record.restart_count and record.runs:
            yield from _engine_ended(state, record, request, now)
    elif request.role != Role.TRAINER or request.restart_count == state.trainers.restart_count:
        holding = _trainer_circumstances(state, request.exit_code, now)
        rule = decide(Loss.PROCESS, request.role, holding)
        yield from _carry_out_for_trainers(state, rule.then, request.failure, now)


def _engine_ended(state: ControlState, record: ReplicaRecord, request: ProcessEndedRequest, now: float) -> Effects:
    holding = {
        When.STOPPING: state.stop.stage is not StopStage.NO,
        When.REFUSED: request.exit_code == REFUSED and not state.was_any_engine_ready,
        When.RESTARTS_LEFT: len(restarts_that_count(state, record, now)) < restart_limit(state),
        When.ENOUGH_REPLICAS: _are_enough_without(state, [record]),
    }
    failure = request.failure
    match decide(Loss.PROCESS, Role.INFERENCE, _those(holding)).then:
        case Decision.LOG:
            yield LogEvent(event=replace(failure, first=False))
        case Decision.RESTART_REPLICA:
            yield from restart_replica(state, record, failure.message, now)
        case Decision.DROP_REPLICAS:
            yield from _drop(state, [record], failure.message)
        case _:
            yield from _drop(state, [record], failure.message)
            yield from fail(state, failure, now)


def _trainer_circumstances(state: ControlState, exit_code: int | None, now: float) -> frozenset[When]:
    trainers, restart = state.trainers, state.settings.restart
    age_s = 0.0 if trainers.started_at is None else now - trainers.started_at
    return _those(
        {
            When.STOPPING: state.stop.stage is not StopStage.NO,
            When.AT_STARTUP: not trainers.has_progressed
            and age_s < restart.startup_failure_window_s
            and not is_from_outside(exit_code),
            When.ONLY_RANK: state.settings.layout.world_size == 1,
            When.RESTARTS_LEFT: _trainers_may_restart(state, now),
        }
    )


def _trainers_may_restart(state: ControlState, now: float) -> bool:
    restart = state.settings.restart
    return (
        len(counted_restarts(state.trainers.restart_times, now, restart.count_window_s)) < restart.max_trainer_restarts
    )


def _carry_out_for_trainers(state: ControlState, decision: Decision, failure: FailureReported, now: float) -> Effects:
    trainers = state.trainers
    match decision:
        case Decision.LOG:
            yield LogEvent(event=replace(failure, first=False))
        case Decision.HOLD:
            if trainers.held_failure is None:
                trainers.held_failure, trainers.held_since = failure, now
        case Decision.RESTART_TRAINERS:
            yield from _restart_trainers(state, failure, now)
        case _:
            yield from fail(state, failure, now)


def step_overdue(state: ControlState, now: float) -> Effects:
    """The trainers hang: no step was finished in time."""
    limit_s = state.settings.restart.step_timeout_s
    failure = FailureReported(
        message=f"No step was finished within `restart.step_timeout_s` ({limit_s:g} s).",
        kind=FailureKind.HUNG,
        role=Role.TRAINER.value,
    )
    rule = decide(Loss.STEP, Role.TRAINER, _trainer_circumstances(state, None, now))
    yield from _carry_out_for_trainers(state, rule.then, failure, now)


def _restart_trainers(state: ControlState, failure: FailureReported, now: float) -> Effects:
    """All ranks of all nodes start again, together."""
    trainers, restart = state.trainers, state.settings.restart
    trainers.restart_times = [*counted_restarts(trainers.restart_times, now, restart.count_window_s), now]
    trainers.restart_count += 1
    trainers.done.clear()
    trainers.started_at = trainers.last_step_at = trainers.held_failure = None
    # Ranks would read what those before them left in their store; torch requires a new one for each start.
    state.values[TRAINER_RESTART_COUNT] = trainers.restart_count
    yield LogEvent(
        event=RestartScheduled(
            what="trainer",
            counted_restarts=len(trainers.restart_times),
            max_restarts=restart.max_trainer_restarts,
            reason=failure.message,
            delay_s=0.0,
        )
    )
    yield from mark_dirty(state, trainers.slots)


def node_lost(state: ControlState, request: NodeLostRequest, now: float) -> Effects:
    """A node takes no part any more: its lease ran out, or it reported that it cannot go on, or it never reported."""
    rank, failure = request.node_rank, request.failure
    node = state.nodes[rank]
    if node.is_lost:
        return
    slot, spares = node.slot, free_spares(state)
    affected = [] if slot is None else kept_replicas(replicas_on(state, slot))
    holding = {
        When.NODE_0: rank == 0,
        When.SPARE: bool(spares),
        When.ENOUGH_REPLICAS: _are_enough_without(state, affected),
        When.RESTARTS_LEFT: state.trainers.started_at is None or _trainers_may_restart(state, now),
    }
    decision = decide(Loss.NODE, supervised_as(state, slot), _those(holding)).then
    if rank == 0:
        # It keeps its slot, and ends the run in order.
        node.has_left = True
        yield from fail(state, failure, now)
        return
    node.slot, node.is_lost = None, True
    if slot is not None:
        state.slots[slot] = None
    yield from mark_nodes_dirty(state, [rank])
    if state.phase in ENDED:
        yield from fail(state, failure, now)  # logged as the consequence that it is
        return
    role = role_of(state, slot)
    yield LogEvent(event=NodeLost(node_rank=rank, hostname=node.hostname, role=role.value, reason=failure.message))
    if state.phase is Phase.DRAINING:
        yield from node_left(state, NodeLeftRequest(node_rank=rank), now)
        return
    for record in affected:
        yield LogEvent(event=ReplicaChanged(replica=record.index, state="lost", reason=failure.message))
    match decision:
        case Decision.REPLACE_NODE if slot is not None:
            yield from _replace_node(state, slot, spares[0], affected, failure, now)
        case Decision.DROP_REPLICAS:
            yield from _drop(state, affected, failure.message)
        case Decision.REQUEUE:
            if slot not in state.trainers.slots:
                yield from _drop(state, affected, failure.message)
            # Nothing is wrong with the run: another allocation will do.
            yield from fail(state, replace(failure, requeue=True), now)
        case Decision.FAIL:
            yield from fail(state, failure, now)


def supervised_as(state: ControlState, slot: int | None) -> Role:
    """Which rows of the policy count for the node on a slot. A node with both roles counts as a trainer node."""
    return Role.TRAINER if slot in state.trainers.slots else role_of(state, slot)


def node_left(state: ControlState, request: NodeLeftRequest, _now: float) -> Effects:
    """A node has ended all its processes and leaves."""
    state.nodes[request.node_rank].has_left = True
    if state.phase is Phase.DRAINING and all_nodes_left(state):
        # A trainer that ended without having read the request to stop had finished.
        is_stopped = state.stop.stage is StopStage.ACKNOWLEDGED
        yield from enter(state, Phase.STOPPED if is_stopped else Phase.FINISHED)


def _replace_node(
    state: ControlState,
    slot: int,
    spare: int,
    affected: Sequence[ReplicaRecord],
    failure: FailureReported,
    now: float,
) -> Effects:
    node = state.nodes[spare]
    state.slots[slot], node.slot = spare, slot
    role = role_of(state, slot)
    yield LogEvent(event=SpareAssigned(node_rank=spare, hostname=node.hostname, slot=slot, role=role.value))
    yield from mark_dirty(state, [slot])
    for record in affected:
        yield from move_replica(state, record, now)
    if slot in state.trainers.slots and state.trainers.started_at is not None:
        yield from _restart_trainers(state, failure, now)


def _drop(state: ControlState, records: Sequence[ReplicaRecord], reason: str) -> Effects:
    for record in records:
        yield from drop_replica(state, record, reason)
    yield from gather_urls(state)


def _are_enough_without(state: ControlState, affected: Sequence[ReplicaRecord]) -> bool:
    return len(kept_replicas(state.replicas)) - len(affected) >= state.settings.min_replicas


def _those(circumstances: dict[When, bool]) -> frozenset[When]:
    return frozenset(when for when, holds in circumstances.items() if holds)

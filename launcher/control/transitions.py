"""How the state of a run changes: ``apply(state, event, now) -> effects``.

An event is a request of a client, :class:`Tick`, or the result of the preflight. A transition changes the state and
nothing else: no sockets, threads, clocks or files. What is to happen outside is returned as effects. The same state,
event and time always lead to the same state and effects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.control import protocol
from launcher.control.effects import Effect, Effects, ForwardSignal, LogEvent, Notify, no_effects
from launcher.control.ending import (
    acknowledge_stop,
    cancel,
    checkpoint_changed,
    end_if_due,
    enter,
    fail,
    mark_dirty,
    request_stop,
)
from launcher.control.model import (
    ENDED,
    MODEL_READY,
    REPLICA_PREFIX,
    STOP_ACKNOWLEDGED,
    Phase,
    StopStage,
    store_key,
    url_key,
)
from launcher.control.preflight_report import PreflightResult
from launcher.control.recovery import HOLD_S, node_left, node_lost, process_ended, step_overdue
from launcher.control.replicas import engine_master, engine_ready, start_due_replicas, url_published, weights_published
from launcher.control.starting import advance, hello, lose_missing_nodes, preflight_compared
from launcher.control.state import ControlState
from launcher.control.views import is_step_overdue, role_of, silent_nodes, trainer_nodes_reported_since
from launcher.events.failure_kinds import FailureKind
from launcher.events.schema import CheckpointChanged, EnginesDraining, FailureReported, StepFinished
from launcher.events.serialize import make_event
from launcher.layout.model import Role


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; about once a second."""


ControlEvent = Tick | PreflightResult | protocol.ControlRequest[Any]
"""What changes the state: a request that is in :data:`TRANSITIONS`; the others only read it."""


def apply(state: ControlState, event: ControlEvent, now: float) -> list[Effect]:
    """Changes the state by one event.

    Args:
        now: seconds that never go back.

    Raises:
        IndexError: the event names a node or a replica that does not exist; nothing has changed.
    """
    _check(state, event)
    effects = list(TRANSITIONS[type(event)](state, event, now))
    if not isinstance(event, protocol.HeartbeatRequest):
        effects += advance(state, now)
    return effects


def _check(state: ControlState, event: ControlEvent) -> None:
    node = getattr(event, "node_rank", 0)
    if isinstance(event, protocol.PreflightRequest):
        node = event.report.node_rank
    if not 0 <= node < len(state.nodes):
        raise IndexError(f"no node {node} among {len(state.nodes)}")
    replicas: list[int] = []
    if isinstance(event, protocol.EngineMasterRequest | protocol.EngineReadyRequest):
        replicas = [event.replica]
    elif isinstance(event, protocol.PublishedRequest):
        replicas = list(event.replicas)
    elif isinstance(event, protocol.ProcessEndedRequest) and event.role == Role.INFERENCE:
        replicas = [event.rank]
    for index in replicas:
        if not 0 <= index < len(state.replicas):
            raise IndexError(f"no replica {index} among {len(state.replicas)}")


def _heartbeat(state: ControlState, request: protocol.HeartbeatRequest, now: float) -> Effects:
    node = state.nodes[request.node_rank]
    if not node.is_lost:
        node.last_contact = now
    return no_effects()


def _preflight(state: ControlState, request: protocol.PreflightRequest, _now: float) -> Effects:
    state.preflight.reports[request.report.node_rank] = request.report
    return no_effects()


def _tick(state: ControlState, _tick: Tick, now: float) -> Effects:
    """Turns silence and hangs into losses, and starts what has waited long enough."""
    if state.phase is Phase.STARTING and now - state.began > state.settings.start_timeout_s:
        yield from lose_missing_nodes(state, now)
    for rank, seconds in silent_nodes(state, now):
        node = state.nodes[rank]
        role = role_of(state, node.slot).value
        failure = FailureReported(
            message=f"{role} on node {rank} ({node.hostname}): its agent has been silent for {seconds:.0f} s, longer"
            f" than `lease_timeout_s` ({state.settings.lease_timeout_s:g}).",
            kind=FailureKind.NODE_LOST,
            role=role,
            node_rank=rank,
            hostname=node.hostname,
        )
        yield from node_lost(state, protocol.NodeLostRequest(node_rank=rank, failure=failure), now)
    if state.phase in ENDED or state.phase is Phase.DRAINING:
        return
    yield from end_if_due(state, now)
    if state.phase in ENDED or state.stop.stage is not StopStage.NO:
        return
    yield from start_due_replicas(state, now)
    trainers = state.trainers
    if trainers.held_failure is not None:
        if trainer_nodes_reported_since(state, trainers.held_since + HOLD_S):
            yield from fail(state, trainers.held_failure, now)
    elif is_step_overdue(state, now):
        yield from step_overdue(state, now)


def _trainers_done(state: ControlState, request: protocol.TrainersDoneRequest, _now: float) -> Effects:
    slot, trainers = state.nodes[request.node_rank].slot, state.trainers
    if slot is None or request.restart_count != trainers.restart_count or state.phase is not Phase.RUNNING:
        return
    trainers.done.add(slot)
    if trainers.slots <= trainers.done:
        yield from enter(state, Phase.DRAINING)
        yield LogEvent(event=EnginesDraining())


def _put(state: ControlState, request: protocol.PutRequest, _now: float) -> Effects:
    state.values[request.key] = request.value
    yield Notify.VALUES
    if request.key.startswith(REPLICA_PREFIX):
        record = next((r for r in state.replicas if request.key == url_key(r.index)), None)
        if record is not None:
            yield from url_published(state, record, str(request.value))
    elif request.key in (MODEL_READY, store_key(state.trainers.restart_count)):
        yield from mark_dirty(state, range(len(state.slots)))
    elif request.key == STOP_ACKNOWLEDGED:
        yield from acknowledge_stop(state)


def _log(state: ControlState, request: protocol.EventRequest, now: float) -> Effects:
    event = make_event(request.event, request.fields)
    if isinstance(event, StepFinished):
        state.trainers.has_progressed = True
        state.trainers.last_step_at = now
    elif isinstance(event, CheckpointChanged):
        checkpoint_changed(state, event, now)
    yield LogEvent(event=event)


TRANSITIONS: Mapping[type[ControlEvent], Callable[[ControlState, Any, float], Effects]] = {
    Tick: _tick,
    PreflightResult: preflight_compared,
    protocol.HelloRequest: hello,
    protocol.HeartbeatRequest: _heartbeat,
    protocol.PreflightRequest: _preflight,
    protocol.EngineMasterRequest: engine_master,
    protocol.EngineReadyRequest: engine_ready,
    protocol.ProcessEndedRequest: process_ended,
    protocol.PublishedRequest: weights_published,
    protocol.TrainersDoneRequest: _trainers_done,
    protocol.NodeLeftRequest: node_left,
    protocol.NodeLostRequest: node_lost,
    protocol.FailRequest: lambda state, request, now: fail(state, request.failure, now),
    protocol.SignalRequest: lambda _state, request, _now: iter([ForwardSignal(name=request.name)]),
    protocol.StopRunRequest: lambda state, request, now: request_stop(state, request.reason, now),
    protocol.CancelRequest: lambda state, request, _now: cancel(state, request.reason),
    protocol.PutRequest: _put,
    protocol.EventRequest: _log,
}
"""Function by the type of an event."""

"""How the state of a run changes: ``apply(state, event, now) -> effects``.

An event is a request of a client, :class:`Tick`, or the result of the preflight. A transition changes the state and
nothing else: no sockets, threads, clocks or files. What is to happen outside is returned as effects. The same state,
event and time always lead to the same state and effects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from launcher.control.effects import Effect, Effects, ForwardSignal, LogEvent, NotifyValues
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
    replica_key,
    store_key,
)
from launcher.control.preflight_report import PreflightResult
from launcher.control.protocol import (
    CancelRequest,
    EngineMasterRequest,
    EngineReadyRequest,
    EventRequest,
    FailRequest,
    HeartbeatRequest,
    HelloRequest,
    NodeLeftRequest,
    NodeLostRequest,
    PreflightRequest,
    ProcessEndedRequest,
    PublishedRequest,
    PutRequest,
    SignalRequest,
    StopRunRequest,
    TrainersDoneRequest,
)
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


ControlEvent = (
    Tick
    | PreflightResult
    | HelloRequest
    | HeartbeatRequest
    | PreflightRequest
    | EngineMasterRequest
    | EngineReadyRequest
    | ProcessEndedRequest
    | PublishedRequest
    | TrainersDoneRequest
    | NodeLeftRequest
    | NodeLostRequest
    | FailRequest
    | SignalRequest
    | StopRunRequest
    | CancelRequest
    | PutRequest
    | EventRequest
)
"""What changes the state. The other requests only read it."""


def apply(state: ControlState, event: ControlEvent, now: float) -> list[Effect]:
    """Changes the state by one event.

    Args:
        now: seconds that never go back.

    Raises:
        IndexError: the event names a node or a replica that does not exist; nothing has changed.
    """
    _check(state, event)
    effects = list(_transition(state, event, now))
    if not isinstance(event, HeartbeatRequest):
        effects += advance(state, now)
    return effects


def _check(state: ControlState, event: ControlEvent) -> None:
    node = getattr(event, "node_rank", 0)
    if isinstance(event, PreflightRequest):
        node = event.report.node_rank
    if not 0 <= node < len(state.nodes):
        raise IndexError(f"no node {node} among {len(state.nodes)}")
    replicas: list[int] = []
    if isinstance(event, EngineMasterRequest | EngineReadyRequest):
        replicas = [event.replica]
    elif isinstance(event, PublishedRequest):
        replicas = list(event.replicas)
    elif isinstance(event, ProcessEndedRequest) and event.role == Role.INFERENCE:
        replicas = [event.rank]
    for index in replicas:
        if not 0 <= index < len(state.replicas):
            raise IndexError(f"no replica {index} among {len(state.replicas)}")


def _transition(state: ControlState, event: ControlEvent, now: float) -> Effects:  # noqa: PLR0912 - one for each event
    match event:
        case Tick():
            yield from _tick(state, now)
        case PreflightResult():
            yield from preflight_compared(state, event, now)
        case HelloRequest():
            yield from hello(state, event, now)
        case HeartbeatRequest():
            node = state.nodes[event.node_rank]
            if not node.is_lost:
                node.last_contact = now
        case PreflightRequest():
            state.preflight.reports[event.report.node_rank] = event.report
        case EngineMasterRequest():
            yield from engine_master(state, event)
        case EngineReadyRequest():
            yield from engine_ready(state, event)
        case ProcessEndedRequest():
            yield from process_ended(state, event, now)
        case PublishedRequest():
            yield from weights_published(state, event)
        case TrainersDoneRequest():
            yield from _trainers_done(state, event)
        case NodeLeftRequest():
            yield from node_left(state, event)
        case NodeLostRequest():
            yield from node_lost(state, event, now)
        case FailRequest():
            yield from fail(state, event.failure, now)
        case SignalRequest():
            yield ForwardSignal(name=event.name)
        case StopRunRequest():
            yield from request_stop(state, event.reason, now)
        case CancelRequest():
            yield from cancel(state, event.reason)
        case PutRequest():
            yield from _put(state, event)
        case EventRequest():
            yield from _log(state, event, now)
        case _:
            assert_never(event)


def _tick(state: ControlState, now: float) -> Effects:
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
        yield from node_lost(state, NodeLostRequest(node_rank=rank, failure=failure), now)
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


def _trainers_done(state: ControlState, request: TrainersDoneRequest) -> Effects:
    slot, trainers = state.nodes[request.node_rank].slot, state.trainers
    if slot is None or request.restart_count != trainers.restart_count or state.phase is not Phase.RUNNING:
        return
    trainers.done.add(slot)
    if trainers.slots <= trainers.done:
        yield from enter(state, Phase.DRAINING)
        yield LogEvent(event=EnginesDraining())


def _put(state: ControlState, request: PutRequest) -> Effects:
    state.values[request.key] = request.value
    yield NotifyValues()
    if request.key.startswith(REPLICA_PREFIX):
        record = next((r for r in state.replicas if request.key == replica_key(r.index, "url")), None)
        if record is not None:
            yield from url_published(state, record, str(request.value))
    elif request.key in (MODEL_READY, store_key(state.trainers.restart_count)):
        yield from mark_dirty(state, range(len(state.slots)))
    elif request.key == STOP_ACKNOWLEDGED:
        yield from acknowledge_stop(state)


def _log(state: ControlState, request: EventRequest, now: float) -> Effects:
    event = make_event(request.event, request.fields)
    if isinstance(event, StepFinished):
        state.trainers.has_progressed = True
        state.trainers.last_step_at = now
    elif isinstance(event, CheckpointChanged):
        checkpoint_changed(state, event, now)
    yield LogEvent(event=event)

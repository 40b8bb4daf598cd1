"""How an attempt ends: after a failure, after a requested stop, or at once. And what every transition uses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from launcher.control.effects import Effects, LogEvent, Notify, NotifyNodes
from launcher.control.model import ENDED, Phase, StopReason, StopStage
from launcher.control.state import ControlState
from launcher.control.views import is_writing
from launcher.events.schema import CheckpointChanged, FailureReported, RunCancelled, StopRequested
from launcher.layout.model import Role


def enter(state: ControlState, phase: Phase) -> Effects:
    """The next phase."""
    state.phase = phase
    yield Notify.ALL_NODES


def mark_dirty(state: ControlState, slots: Iterable[int]) -> Effects:
    """The assignments of the nodes on these slots have changed."""
    yield from mark_nodes_dirty(state, [node for slot in slots if (node := state.slots[slot]) is not None])


def mark_nodes_dirty(state: ControlState, node_ranks: Iterable[int]) -> Effects:
    """The assignments of these nodes have changed."""
    changed = frozenset(node_ranks)
    for rank in changed:
        state.nodes[rank].revision += 1
    if changed:
        yield NotifyNodes(node_ranks=changed)


def fail(state: ControlState, failure: FailureReported, now: float) -> Effects:
    """The first failure is the run's; what comes later is logged as a consequence.

    A failure that is not the trainer's waits for a checkpoint that is being written.
    """
    is_first = state.phase not in ENDED and not state.is_failure_held
    yield LogEvent(event=replace(failure, first=is_first))
    if not is_first:
        return
    state.failure = failure
    if state.phase is Phase.RUNNING and is_writing(state, now) and failure.role != Role.TRAINER:
        state.is_failure_held = True
    else:
        yield from _end_after_failure(state)


def request_stop(state: ControlState, reason: StopReason, now: float) -> Effects:
    """The run is to stop after a checkpoint. Requested again, only a better known reason counts."""
    if state.stop.stage is not StopStage.NO:
        # Also in a phase that has ended: the reason is read after all nodes have left.
        if state.phase is not Phase.CANCELLED and reason.replaces(state.stop.reason):
            state.stop.reason = reason
            yield LogEvent(event=StopRequested(reason=reason.value))
        return
    if state.phase in ENDED or state.phase is Phase.DRAINING:
        return
    state.stop.stage, state.stop.reason, state.stop.requested_at = StopStage.REQUESTED, reason, now
    yield LogEvent(event=StopRequested(reason=reason.value))
    yield from mark_dirty(state, range(len(state.slots)))
    if state.phase is not Phase.RUNNING or state.trainers.started_at is None:
        yield from enter(state, Phase.STOPPED)  # nothing runs that could save anything


def acknowledge_stop(state: ControlState) -> Effects:
    """All ranks of the trainer know that the run stops."""
    if state.stop.stage is StopStage.REQUESTED:
        state.stop.stage = StopStage.ACKNOWLEDGED
    yield from mark_dirty(state, range(len(state.slots)))


def cancel(state: ControlState, reason: str) -> Effects:
    """The run is to end at once."""
    if state.phase not in ENDED:
        state.failure = FailureReported(message=reason)
        yield LogEvent(event=RunCancelled(message=reason))
        yield from enter(state, Phase.CANCELLED)


def checkpoint_changed(state: ControlState, event: CheckpointChanged, now: float) -> None:
    """A checkpoint begins, or has come to its end."""
    state.stop.writing_since = now if event.state == "begin" else None


def end_if_due(state: ControlState, now: float) -> Effects:
    """Ends the run if it has waited long enough for a checkpoint, or for a trainer that was to stop."""
    if is_writing(state, now):
        return
    stop, waited = state.stop, now - state.stop.requested_at
    if state.is_failure_held:
        yield from _end_after_failure(state)
    elif stop.stage is not StopStage.NO and waited > state.settings.stop_timeout_s:
        yield LogEvent(
            event=StopRequested(reason=None if stop.reason is None else stop.reason.value, overdue=True, after_s=waited)
        )
        yield from enter(state, Phase.STOPPED)


def _end_after_failure(state: ControlState) -> Effects:
    # If a stop was requested anyway, the next attempt continues the run despite the failure.
    is_stopping = state.stop.stage is not StopStage.NO
    yield from enter(state, Phase.STOPPED if is_stopping else Phase.FAILED)

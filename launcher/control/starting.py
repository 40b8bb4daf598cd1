"""From the first node that reports to the start of the run: every slot has its node, and every node was checked."""

from __future__ import annotations

from launcher.common.errors import PREFLIGHT_FAILED
from launcher.control.effects import ComparePreflightReports, Effects, LogEvent
from launcher.control.ending import enter, fail, mark_dirty
from launcher.control.model import Phase
from launcher.control.policy import Decision, Loss, When, decide
from launcher.control.preflight_report import BadNode, PreflightResult, headline, table
from launcher.control.protocol import HelloRequest, NodeLostRequest
from launcher.control.recovery import node_lost, supervised_as
from launcher.control.state import ControlState
from launcher.control.views import free_spares, missing_slots, role_of, trainers_may_start
from launcher.events.failure_kinds import FailureKind
from launcher.events.schema import FailureReported, NodeJoined, PhaseChanged, PreflightFinished


def hello(state: ControlState, request: HelloRequest, now: float) -> Effects:
    """A node reports. One that is lost already takes no part."""
    node = state.nodes[request.node_rank]
    if node.is_lost:
        return
    node.last_contact, node.hostname = now, request.hostname
    layout = state.settings.layout
    yield LogEvent(
        event=NodeJoined(
            node_rank=request.node_rank,
            hostname=request.hostname,
            role=role_of(state, node.slot).value,
            role_rank=None if node.slot is None else layout.nodes[node.slot].role_rank,
            address=request.address,
        )
    )


def advance(state: ControlState, now: float) -> Effects:
    """Goes on with the start as far as possible. Follows every transition."""
    if state.phase is Phase.STARTING and not any(True for _ in missing_slots(state)):
        if state.settings.has_preflight:
            state.preflight.since = now
            yield from enter(state, Phase.CHECKING)
            yield LogEvent(event=PhaseChanged(phase="preflight", who="job", state="begin"))
        else:
            yield from _run(state)
    if state.phase is Phase.CHECKING and not state.preflight.is_comparing and _has_all_reports(state, now):
        state.preflight.is_comparing = True
        yield ComparePreflightReports(reports=tuple(state.preflight.reports.values()))
    if state.trainers.started_at is None and trainers_may_start(state):
        state.trainers.started_at = now


def _has_all_reports(state: ControlState, now: float) -> bool:
    preflight = state.preflight
    is_late = now - preflight.since > state.settings.preflight_timeout_s
    return is_late or len(preflight.reports) == len(state.nodes)


def preflight_compared(state: ControlState, result: PreflightResult, now: float) -> Effects:
    """Starts the run, with spares in the slots of bad nodes; or ends it."""
    if state.phase is not Phase.CHECKING:
        return
    for node in state.settings.layout.all_nodes:
        rank = node.node_rank
        report = state.preflight.reports.get(rank)
        yield LogEvent(
            event=PreflightFinished(
                node_rank=rank,
                hostname=node.hostname,
                ok=result.ok(rank),
                seconds=report.seconds if report else None,
                clock_s=report.clock_s if report else None,
                clock_error_s=report.clock_error_s if report else None,
                checks=[{"name": f.name, "ok": f.ok, "text": f.text} for f in result.findings[rank]],
            )
        )
    state.preflight.bad_nodes = result.bad
    bad = [found for found in result.bad if not state.nodes[found.node_rank].is_lost]
    with_slot = [node for node in bad if state.nodes[node.node_rank].slot is not None]
    spares = set(free_spares(state)) - {node.node_rank for node in bad}
    decisions = {_decide(state, node, len(with_slot) <= len(spares)) for node in bad if node in with_slot}
    if Decision.FAIL in decisions:
        failure = FailureReported(
            message=headline(bad, len(state.nodes)),
            kind=FailureKind.PREFLIGHT,
            tail=table(bad),
            bad_nodes=[node.hostname for node in bad],
            launcher_exit_code=PREFLIGHT_FAILED,
        )
        yield from fail(state, failure, now)
        return
    if state.settings.bad_nodes_fail:
        for found in sorted(bad, key=lambda found: -found.node_rank):  # spares first, so that none takes a slot
            failure = FailureReported(
                message=f"Preflight failed on node {found.node_rank} ({found.hostname}): {found.reason}",
                kind=FailureKind.PREFLIGHT,
                node_rank=found.node_rank,
                hostname=found.hostname,
            )
            yield from node_lost(state, NodeLostRequest(node_rank=found.node_rank, failure=failure), now)
    yield LogEvent(event=PhaseChanged(phase="preflight", who="job", state="end"))
    yield from _run(state)


def _decide(state: ControlState, node: BadNode, is_spare_there: bool) -> Decision:
    holding = {
        When.WARN_ONLY: not state.settings.bad_nodes_fail,
        When.NODE_0: node.node_rank == 0,
        When.EVERYWHERE: not node.is_its_own,
        When.SPARE: is_spare_there,
    }
    role = supervised_as(state, state.nodes[node.node_rank].slot)
    return decide(Loss.PREFLIGHT, role, frozenset(when for when, holds in holding.items() if holds)).then


def lose_missing_nodes(state: ControlState, now: float) -> Effects:
    """Not every node has reported in time: spares take the slots of those that have not."""
    layout = state.settings.layout
    missing = [layout.nodes[slot] for slot in missing_slots(state)]
    names = ", ".join(f"{n.node_rank} ({n.hostname})" for n in missing[:8]) + (", ..." if missing[8:] else "")
    failure = FailureReported(
        message=f"{len(missing)} of {len(layout.nodes)} nodes did not report within"
        f" `start_timeout_s` ({state.settings.start_timeout_s:g}): node {names}.",
        kind=FailureKind.NODE_LOST,
    )
    for node in missing:
        rank = state.slots[node.node_rank]
        if state.phase is Phase.STARTING and rank is not None:
            yield from node_lost(state, NodeLostRequest(node_rank=rank, failure=failure), now)


def _run(state: ControlState) -> Effects:
    yield from enter(state, Phase.RUNNING)
    yield from mark_dirty(state, range(len(state.slots)))

"""The line that an event has in a run's timeline: restarts, losses, checkpoints, stops; not steps and start-up."""

from __future__ import annotations

from launcher.common.text import counted, duration, size
from launcher.events import schema
from launcher.events.run_state import RunState, TimelineEntry


def timeline_entry(state: RunState, event: schema.Event) -> TimelineEntry | None:
    """The entry of an event; None if it has none.

    Args:
        state: before the event.
    """
    found = _text(state, event)
    if found is None:
        return None
    text, is_bad = found
    return TimelineEntry(time=event.time, kind=event.event_name, text=text, is_bad=is_bad)


def _text(state: RunState, event: schema.Event) -> tuple[str, bool] | None:  # noqa: PLR0911  (one line per kind)
    match event:
        case schema.RestartScheduled():
            return _restart(event), True
        case schema.ReplicaChanged():
            return _replica(state, event)
        case schema.NodeLost(node_rank=node):
            where = f"{event.role or 'node'} node {node} ({event.hostname or f'node {node}'})"
            return f"lost {where}{_because(event.reason)}", True
        case schema.SpareAssigned(slot=slot):
            return f"spare {event.hostname or 'a spare'} takes the place of node {slot}", False
        case schema.PreflightFinished():
            return _preflight(state, event)
        case schema.CheckpointChanged(state="failed"):
            return f"the checkpoint of step {event.step} FAILED{_because(event.reason)}", True
        case schema.CheckpointChanged(state="end", step=int(step)):
            took = f" in {duration(event.seconds)}" if event.seconds is not None else ""
            weight = f", {size(event.bytes)}" if event.bytes is not None else ""
            return f"checkpoint of step {step} saved{took}{weight}", False
        case schema.CheckpointLoaded():
            return f"resumed from step {event.step}: {event.path}", False
        case schema.StopRequested():
            late = "; no checkpoint was written in time" if event.overdue else ""
            return f"stopping: {event.reason or 'requested'}{late}", event.overdue
        case schema.JobRequeued():
            return f"requeued{_because(event.reason)}", False
        case schema.WeightsPublished(version=version, dropped=[_, *_]) if event.event_name == "published":
            names = ", ".join(f"inference-{replica}" for replica in event.dropped)
            return f"version {version} did not reach {names}", True
    return None


def _restart(event: schema.RestartScheduled) -> str:
    everything = "all trainers" if event.what == "trainer" else event.what
    line = f"restarting {everything if event.replica is None else f'inference-{event.replica}'}"
    if event.counted_restarts is not None:
        limit = f" of {event.max_restarts}" if event.max_restarts is not None else ""
        line += f" (restart {event.counted_restarts}{limit})"
    line += f" in {duration(event.delay_s)}" if event.delay_s else ""
    return f"{line}{_because(event.reason)}"


def _replica(state: RunState, event: schema.ReplicaChanged) -> tuple[str, bool] | None:
    texts = {"lost": "is lost", "dropped": "is dropped for good", "ready": "is ready again"}
    # The first time that a replica is ready has a line of its own, and a restart, too.
    if event.state not in texts or (event.state == "ready" and event.replica not in state.replica_states):
        return None
    return f"inference-{event.replica} {texts[event.state]}{_because(event.reason)}", event.state != "ready"


def _preflight(state: RunState, event: schema.PreflightFinished) -> tuple[str, bool] | None:
    if not event.ok:
        failed = [check for check in event.checks if not check.get("ok")]
        found = "; ".join(f"{check.get('name')}: {check.get('text')}" for check in failed) or "no reason recorded"
        return f"preflight FAILED on node {event.node_rank} ({event.hostname}): {found}", True
    passed = state.preflight | {event.node_rank: True}
    if len(passed) == state.nodes and all(passed.values()):
        return f"preflight passed on {counted(len(passed), 'node')}", False
    return None


def _because(reason: str | None) -> str:
    return f": {reason}" if reason else ""

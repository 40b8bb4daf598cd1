"""The one fold of a run's events into its state, which the terminal, the page, pictures, ``why`` and sweeps read."""

from __future__ import annotations

import dataclasses
from itertools import count

from launcher.events import schema
from launcher.events.run_state import (
    ENGINE,
    FIRST_STEP,
    JOB,
    LAUNCH,
    NODES,
    QUEUE,
    AttemptState,
    PastAttempt,
    ProcessRecord,
    ProcessStatus,
    RunState,
    StartupPhase,
    TimelineEntry,
)
from launcher.events.timeline import timeline_entry

VERSIONS_KEPT = 60
"""So many of the last versions keep the list of the replicas that took them."""

_OVER = (ProcessStatus.FAILED, ProcessStatus.VICTIM)


def apply_event(state: RunState, event: schema.Event) -> None:  # noqa: PLR0912  (one case per kind)
    """Folds one event into ``state``; events must come in the order of the log. Unknown kinds only move the clock."""
    state.last_at = max(state.last_at, event.time)
    if state.began_at is None:
        state.began_at = event.time
    entry: TimelineEntry | None = timeline_entry(state, event)
    match event:
        case schema.RunSubmitted() | schema.AttemptStarted() | schema.EnginesDraining() | schema.AttemptFinished():
            _fold_attempt(state, event)
        case schema.NodeJoined() | schema.NodeLost() | schema.SpareAssigned() | schema.PreflightFinished():
            _fold_node(state, event)
        case schema.PhaseChanged(phase=name, who=who, state="begin"):
            _begin(state, name, who, event.time)
            if name == FIRST_STEP:
                _record(state, who).status = ProcessStatus.RUNNING
        case schema.PhaseChanged(phase=name, who=who):
            _end(state, name, who, event.time)
        case schema.ProcessChanged():
            _fold_process(state, event)
        case schema.EngineReady() | schema.ReplicaChanged():
            _fold_replica(state, event)
        case schema.RestartScheduled(what=what):
            state.restarts[what] = state.restarts.get(what, 0) + 1
        case schema.FailureReported():
            _fold_failure(state, event)
        case schema.StopRequested():
            state.stopping = state.stopping or event
        case schema.RunCancelled():
            state.cancelled = event
        case schema.JobRequeued():
            state.requeued = event
        case schema.StepFinished():
            _fold_step(state, event)
        case schema.CheckReported():
            state.checks.append(event)
        case schema.CheckpointChanged(state="end", step=int(step)):
            state.checkpoint_step = step
        case schema.CheckpointLoaded():
            state.resumed_step = event.step
        case schema.WeightsPublished() if event.event_name == "published":
            state.has_published = True
            _took_version(state, event.version, event.replicas)
        case _:
            pass
    if entry is not None:
        state.timeline.append(entry)


def _fold_attempt(
    state: RunState,
    event: schema.RunSubmitted | schema.AttemptStarted | schema.EnginesDraining | schema.AttemptFinished,
) -> None:
    match event:
        case schema.RunSubmitted():
            if state.outcome is not None:
                _start_attempt(state, event.time)
            state.cluster, state.job_id = event.cluster, event.job_id
            # The job may have started before the submitting host, who learns its id from sbatch, could write this.
            if state.attempt is None:
                _begin(state, QUEUE if state.cluster == "slurm" else LAUNCH, JOB, event.time)
        case schema.AttemptStarted():
            if state.attempt is not None:
                _start_attempt(state, event.time)
            state.attempt, state.started_at = event.attempt, event.time
            state.job_id = event.job_id or state.job_id
            for name in ("nodes", "trainer_nodes", "inference_nodes", "world_size", "replicas"):
                setattr(state, name, getattr(event, name))
            _end(state, QUEUE, JOB, event.time)
            _end(state, LAUNCH, JOB, event.time)
            _begin(state, NODES, JOB, event.time)
            _end_nodes(state, event.time)
        case schema.EnginesDraining():
            state.draining_at = event.time
        case schema.AttemptFinished():
            state.finished_at, state.outcome, state.seconds = event.time, event.outcome, event.seconds
            for process in state.processes.values():
                if process.status in (ProcessStatus.STARTING, ProcessStatus.RUNNING):
                    process.status = ProcessStatus.ENDED


def _start_attempt(state: RunState, time: float) -> None:
    """Forgets the attempt before; its outcome and last step stay."""
    if state.attempt is not None:
        outcome = state.outcome or "ended without a final event"
        step = state.last_step.step if state.last_step is not None else None
        state.past_attempts.append(PastAttempt(attempt=state.attempt, outcome=outcome, step=step))
    fresh = AttemptState()
    for item in dataclasses.fields(fresh):
        setattr(state, item.name, getattr(fresh, item.name))
    state.began_at = time


def _fold_node(
    state: RunState, event: schema.NodeJoined | schema.NodeLost | schema.SpareAssigned | schema.PreflightFinished
) -> None:
    match event:
        case schema.NodeJoined(node_rank=node):
            state.nodes_up[node] = event.hostname or f"node {node}"
            state.node_roles[node] = event.role or ""
            state.node_addresses[node] = event.address or ""
            _end_nodes(state, event.time)
        case schema.NodeLost(node_rank=node):
            state.node_losses[node] = event
            _set_node(state, node, ProcessStatus.LOST)
        case schema.SpareAssigned(slot=slot):
            # The slot of the layout stays; another machine fills it.
            state.nodes_up[slot] = event.hostname or f"node {slot}"
            state.node_roles[slot] = event.role or state.node_roles.get(slot, "")
            state.spares[slot] = event.hostname or "a spare"
            _set_node(state, slot, ProcessStatus.WAITING)
        case schema.PreflightFinished(node_rank=node):
            state.preflight[node] = event.ok
            if event.clock_s is not None:
                state.clock_offsets[node] = (event.clock_s, event.clock_error_s or 0.0)


def _fold_process(state: RunState, event: schema.ProcessChanged) -> None:
    if event.state == "started":
        state.processes[event.name] = ProcessRecord(
            name=event.name,
            status=ProcessStatus.STARTING,
            role=event.role,
            rank=event.rank,
            node_rank=event.node_rank,
        )
        state.has_new_trainers = state.has_new_trainers or event.role == "trainer"
    else:
        process = _record(state, event.name)
        process.exit_code = event.exit_code
        if process.status not in _OVER:
            process.status = ProcessStatus.ENDED
    if event.role != "inference" or event.rank is None:
        return
    if event.state == "ended":
        state.engines.pop(event.rank, None)
    elif event.name == f"inference-{event.rank}":
        _begin(state, ENGINE, event.name, event.time)


def _fold_replica(state: RunState, event: schema.EngineReady | schema.ReplicaChanged) -> None:
    replica, who = event.replica, f"inference-{event.replica}"
    if isinstance(event, schema.ReplicaChanged):
        state.replica_states[replica] = event.state
        if event.state in ("lost", "dropped"):
            state.engines.pop(replica, None)
            state.versions.pop(replica, None)
            _set_rank(state, "inference", replica, ProcessStatus.FAILED)
        return
    state.engines[replica] = event.url or ""
    if event.seconds is not None and (ENGINE, who) not in state.begun_phases:
        _begin(state, ENGINE, who, event.time - event.seconds)
    for name in list(state.open_by_process.get(who, ())):
        _end(state, name, who, event.time)
    _set_rank(state, "inference", replica, ProcessStatus.RUNNING)


def _fold_failure(state: RunState, event: schema.FailureReported) -> None:
    status = ProcessStatus.VICTIM if state.failures else ProcessStatus.FAILED
    state.failures.append(event)
    if event.role in ("trainer", "inference") and event.rank is not None:
        _set_rank(state, event.role, event.rank, status)
    elif event.node_rank is not None:
        _set_node(state, event.node_rank, status)


def _fold_step(state: RunState, event: schema.StepFinished) -> None:
    if state.first_step_at is None:
        state.first_step_at = event.time
        for name, who in list(state.open_phases):
            if name == FIRST_STEP:
                _end(state, name, who, event.time)
    if state.has_new_trainers:
        state.has_new_trainers = False
        for process in state.processes.values():
            if process.role == "trainer" and process.status is ProcessStatus.STARTING:
                process.status = ProcessStatus.RUNNING
    # After a restart from a checkpoint the steps since then are done again.
    while state.steps and state.steps[-1].step >= event.step:
        state.steps.pop()
    state.steps_planned = event.steps or state.steps_planned
    state.steps.append(event)
    # Where no event names the replicas of a version, all of those that are ready serve it.
    if event.version is not None and not state.has_published:
        _took_version(state, event.version, list(state.engines))


def _took_version(state: RunState, version: int, replicas: list[int]) -> None:
    state.versions |= dict.fromkeys(replicas, version)
    state.recent_versions = [*state.recent_versions, (version, frozenset(replicas))][-VERSIONS_KEPT:]


def _set_rank(state: RunState, role: str, rank: int, status: ProcessStatus) -> None:
    """Sets the status of a trainer rank, or of all parts of a replica."""
    if role == "trainer":
        _record(state, f"trainer-{rank:04d}").status = status
        return
    _record(state, f"inference-{rank}").status = status
    for part in count(1):
        process = state.processes.get(f"inference-{rank}.{part}")
        if process is None:
            return
        process.status = status


def _record(state: RunState, name: str) -> ProcessRecord:
    """The record of a process; also of one whose start is missing in the log."""
    return state.processes.setdefault(name, ProcessRecord(name=name, status=ProcessStatus.STARTING))


def _set_node(state: RunState, node: int, status: ProcessStatus) -> None:
    for process in state.processes.values():
        if process.node_rank == node:
            process.status = status


def _begin(state: RunState, name: str, who: str, time: float) -> None:
    if (name, who) not in state.open_phases:
        phase = StartupPhase(name=name, who=who, begin=time)
        state.phases.append(phase)
        state.open_phases[name, who] = phase
        state.open_by_process.setdefault(who, set()).add(name)
        state.begun_phases.add((name, who))


def _end(state: RunState, name: str, who: str, time: float) -> None:
    phase = state.open_phases.pop((name, who), None)
    if phase is not None:
        phase.end = time
        state.open_by_process[who].discard(name)


def _end_nodes(state: RunState, time: float) -> None:
    if state.nodes is not None and len(state.nodes_up) >= state.nodes:
        _end(state, NODES, JOB, time)

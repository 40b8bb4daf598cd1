"""The status of a run as labelled lines: job, nodes by role, replicas and their versions, restarts, attempts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from launcher.common.text import counted, duration, listed
from launcher.events.run_state import ProcessStatus, RunState
from launcher.observe.terminal.plain import failure_text, step_figures

if TYPE_CHECKING:
    from launcher.observe.run_status import RunStatus

NAMES_SHOWN = 6
READY, STARTING = "ready", "starting"


def status_lines(status: RunStatus, state: RunState, problem: str | None, *, now: float) -> Iterator[tuple[str, str]]:
    """Labels and texts; what is not known is left out.

    Args:
        problem: why the job's state is only the last known one.
    """
    run = status.summary
    yield "state", f"{status.state}{'' if status.is_certain else '?'}"
    yield "job", _job(status, now) + (f"   ({problem})" if problem else "")
    if run.nodes is not None:
        yield "nodes", _nodes(run.nodes, state)
    if state.preflight:
        bad = [state.nodes_up.get(node, f"node {node}") for node, ok in state.preflight.items() if not ok]
        passed = sum(state.preflight.values())
        yield "preflight", f"passed on {passed}" + (f", FAILED on {_names(bad)}" if bad else "")
    if state.replicas:
        yield "replicas", _replicas(state)
    if state.versions:
        yield "versions", _versions(state.versions)
    if state.steps:
        step = state.steps[-1]
        planned = f"/{state.steps_planned}" if state.steps_planned else ""
        pace = state.step_seconds()
        yield (
            "step",
            "   ".join(
                [
                    f"{step.step}{planned}",
                    *step_figures(step),
                    *([f"{duration(pace)} a step"] if pace is not None else []),
                ]
            ),
        )
    if state.checkpoint_step is not None:
        yield "checkpoint", f"of step {state.checkpoint_step}"
    if state.restarts:
        yield "restarts", ", ".join(f"{what} {count}" for what, count in state.restarts.items())
    if state.lost_nodes or state.spares:
        yield "lost", _lost(state.lost_nodes, state.spares)
    if state.attempt is not None and state.attempt > 1:
        yield "attempts", _attempts(state)
    if state.stop_reason is not None and not status.is_over:
        yield "stopping", state.stop_reason
    if state.failure is not None:
        yield "cause", failure_text(state.failure)
        if state.failure.log is not None:
            yield "log", state.failure.log


def _job(status: RunStatus, now: float) -> str:
    run = status.summary
    if run.job_id is None:
        return {"local": "on this machine" if run.job is not None else "none"}.get(run.cluster or "", "not submitted")
    if status.job is None:
        return f"{run.job_id}: no longer known to SLURM" if status.is_certain else run.job_id
    job = status.job
    text = f"{run.job_id}: {job.name}"
    if job.reason is not None and job.is_waiting:
        text += f", {job.reason}"
    if job.start is None:
        return text + (", no expected start yet" if job.is_waiting and not job.is_held else "")
    clock = time.strftime("%b %d %H:%M", time.localtime(job.start))
    if job.is_waiting:
        return f"{text}, expected to start {clock} (in {duration(job.start - now)})"
    return f"{text}, since {clock}"


def _nodes(count: int, state: RunState) -> str:
    up = f"{len(state.nodes_up)}/{count} up" if state.nodes_up and state.outcome is None else counted(count, "node")
    roles: dict[str, list[str]] = {}
    for node_rank, hostname in sorted(state.nodes_up.items()):
        roles.setdefault(state.node_roles.get(node_rank, "") or "node", []).append(hostname)
    shares = [f"{len(names)} {role} ({_names(names)})" for role, names in roles.items()]
    return "; ".join([up, *shares])


def replica_states(state: RunState) -> dict[int, str]:
    """What each replica of the layout is doing."""
    found = {}
    for replica in range(state.replicas or 0):
        last = state.replica_states.get(replica, STARTING)
        process = state.processes.get(f"inference-{replica}")
        has_failed = process is not None and process.status in (ProcessStatus.FAILED, ProcessStatus.VICTIM)
        if replica in state.engines:
            found[replica] = READY
        elif last == READY or (last == STARTING and state.outcome is not None):
            # Its process has ended since it was ready; nor does a replica start when all is over.
            found[replica] = "failed" if has_failed else "ended"
        else:
            found[replica] = last
    return found


def _replicas(state: RunState) -> str:
    by_state: dict[str, list[str]] = {}
    for replica, word in replica_states(state).items():
        by_state.setdefault(word, []).append(f"inference-{replica}")
    others = [f"{word}: {_names(names)}" for word, names in by_state.items() if word != READY]
    if state.outcome is not None:
        return counted(state.replicas or 0, "replica")
    return "; ".join([f"{len(by_state.get(READY, []))}/{state.replicas} ready", *others])


def _versions(versions: Mapping[int, int]) -> str:
    by_version: dict[int, list[str]] = {}
    for replica, version in versions.items():
        by_version.setdefault(version, []).append(f"inference-{replica}")
    return ", ".join(f"{version} on {listed(names)}" for version, names in sorted(by_version.items(), reverse=True))


def _lost(lost: Mapping[int, str], spares: Mapping[int, str]) -> str:
    parts = [
        f"node {node} ({hostname})" + (f", now {spares[node]}" if node in spares else "")
        for node, hostname in lost.items()
    ]
    parts += [f"node {node}, now {hostname}" for node, hostname in spares.items() if node not in lost]
    return "; ".join(parts)


def _attempts(state: RunState) -> str:
    past = [
        f"{attempt.attempt} {attempt.outcome}" + (f" at step {attempt.step}" if attempt.step is not None else "")
        for attempt in state.past_attempts
    ]
    resumed = f", resumed from step {state.resumed_step}" if state.resumed_step is not None else ""
    return "; ".join([*past, f"{state.attempt} now{resumed}"])


def _names(names: list[str]) -> str:
    folded = listed(names)
    if folded.count(",") < NAMES_SHOWN:
        return folded
    return f"{', '.join(names[:NAMES_SHOWN])}, ... {len(names)} in all"

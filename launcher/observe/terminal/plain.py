"""Plain timestamped lines, for a log or a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TextIO

from launcher.common.text import counted, duration, listed, number
from launcher.events.run_state import (
    ENGINE,
    FIRST_STEP,
    JOB,
    LAUNCH,
    NODES,
    QUEUE,
    PhaseGroup,
    RunState,
    StartupPhase,
)
from launcher.events.schema import FailureReported, StepFinished

REMIND_EVERY_S = 15.0
QUEUE_REMIND_EVERY_S = 60.0
"""A queue may take hours."""

HOLD_S = 1.0
"""The end of a phase is written this much later while other processes are in it, so that a thousand make few lines."""

SHORTEST_STEP_LINE_S = 1.0
"""When steps are faster than this, only every 2nd, 5th, 10th, ... has a line."""


class PlainDisplay:
    """Writes one line for each thing that happened, and a reminder of what is waited for."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.time) -> None:
        self._stream = stream
        self._clock = clock
        self._step_time = 0.0
        self._step_line: StepFinished | None = None
        self._timeline_seen = 0
        self._began_at: float | None = None
        self._reset()

    def update(self, state: RunState) -> None:
        """Writes what is new since the last call."""
        if state.began_at is None:
            return
        if state.began_at != self._began_at:
            self._reset()
            self._began_at = state.began_at
        lines = [*self._startup(state), *self._supervised(state), *self._training(state), *self._ending(state)]
        # Stable: what happened at the same moment stays in the order above.
        for at, line in sorted(lines, key=lambda item: item[0]):
            self._write(at, line)
        self._remind(state)
        self._stream.flush()

    def close(self) -> None:
        """Writes the last step if its line was left out."""
        if self._step_line is not None:
            self._write(self._step_line.time, _step_text(self._step_line, None))
            self._step_line = None
        self._stream.flush()

    def _reset(self) -> None:
        self._attempt: int | None = None
        self._has_submitted = False
        self._pending: list[StartupPhase] = []
        self._phases_seen = 0
        self._engines: set[int] = set()
        self._reminded: dict[str, int] = {}
        self._checks = self._failures = 0
        self._has_drained = self._has_finished = False

    def _startup(self, state: RunState) -> Iterator[tuple[float, str]]:
        if not self._has_submitted and state.cluster is not None:
            self._has_submitted = True
            job = f", job {state.job_id}" if state.job_id else ""
            yield self._began_at or 0.0, f"submitted to {state.cluster}{job}, run directory {state.run_dir}"
        self._pending += state.phases[self._phases_seen :]
        self._phases_seen = len(state.phases)
        by_name: dict[str, list[StartupPhase]] = {}
        for phase in self._pending:
            by_name.setdefault(phase.name, []).append(phase)
        self._pending = []
        for name, phases in by_name.items():
            ended = [phase for phase in phases if phase.end is not None]
            hold_until = min((p.end or 0.0 for p in ended), default=0.0) + HOLD_S
            is_held = len(ended) < len(phases) and self._clock() < hold_until and state.outcome is None
            self._pending += phases if is_held else [phase for phase in phases if phase.end is None]
            # These end with a line about the replica or the step.
            if ended and not is_held and name not in (ENGINE, FIRST_STEP):
                yield max(p.end or 0.0 for p in ended), _ended_text(name, ended, state)
        if self._attempt is None and state.attempt is not None:
            self._attempt = state.attempt
            begin = next((p.begin for p in state.phases if p.name == NODES), state.last_at)
            yield begin, _attempt_text(state)
        yield from self._replicas(state)

    def _supervised(self, state: RunState) -> Iterator[tuple[float, str]]:
        new = state.timeline[self._timeline_seen :]
        self._timeline_seen += len(new)
        yield from ((entry.time, entry.text) for entry in new)

    def _replicas(self, state: RunState) -> Iterator[tuple[float, str]]:
        ready = {p.who: p for p in state.phases if p.name == ENGINE and p.end is not None} if state.engines else {}
        total = max(state.replicas or 0, len(state.engines))
        new = sorted((ready[f"inference-{n}"].end or 0.0, n) for n in state.engines.keys() - self._engines)
        for at, replica in new:
            self._engines.add(replica)
            phase = ready[f"inference-{replica}"]
            at_url = f" at {state.engines[replica]}" if state.engines[replica] else ""
            took = duration(at - phase.begin)
            yield at, f"replicas ready {len(self._engines)}/{total}: {phase.who}{at_url} after {took}"
        for replica in self._engines - state.engines.keys():
            self._engines.discard(replica)
            # Of one that is lost or dropped there is a line already, with the reason.
            if state.draining_at is None and replica not in state.replica_states:
                yield state.last_at, f"replicas ready {len(self._engines)}/{total}: inference-{replica} has ended"

    def _training(self, state: RunState) -> Iterator[tuple[float, str]]:
        new = [step for step in state.steps if step.time > self._step_time]
        if not new:
            return
        is_first = self._step_time == 0.0
        self._step_time = new[-1].time
        startup = state.startup_seconds()
        if is_first and startup is not None:
            yield new[0].time, f"first step {duration(startup)} after submission"
        every = _every(state.step_seconds())
        for step in new:
            is_shown = step.step % every == 0 or step is state.steps[0] or step.step == state.steps_planned
            if is_shown:
                yield step.time, _step_text(step, state.steps_planned)
            self._step_line = None if is_shown else step

    def _ending(self, state: RunState) -> Iterator[tuple[float, str]]:
        for check in state.checks[self._checks :]:
            yield state.last_at, f"check {'passed' if check.ok else 'FAILED'}: {check.name}: {check.text}"
        for index, failure in enumerate(state.failures[self._failures :], self._failures):
            yield failure.time, ("FAILED: " if index == 0 else "failed too: ") + failure_text(failure)
        self._checks, self._failures = len(state.checks), len(state.failures)
        if state.draining_at is not None and not self._has_drained:
            self._has_drained = True
            yield state.draining_at, "the trainer has finished; engines are draining"
        if state.outcome is not None and not self._has_finished:
            self._has_finished = True
            yield state.finished_at or state.last_at, state.ending()

    def _remind(self, state: RunState) -> None:
        if state.outcome is not None or not state.open_phases:
            return
        now = max(self._clock(), state.last_at)
        groups = {group.name: group for group in state.groups() if group.is_open}
        engines = set(groups[ENGINE].waiting) if ENGINE in groups else set()
        for name in self._reminded.keys() - groups.keys():
            del self._reminded[name]
        for group in groups.values():
            if group.name != ENGINE and engines.issuperset(group.waiting):
                continue  # A stage of an engine's start: the line about the engine covers it, with the deadline.
            waited = group.longest_wait(now)
            every = QUEUE_REMIND_EVERY_S if group.name == QUEUE else REMIND_EVERY_S
            count = int(waited / every)
            if count > self._reminded.get(group.name, 0):
                deadline = state.deadlines.get(group.name)
                limit = f" of {deadline:.0f} s" if deadline is not None else ""
                self._write(now, f"still waiting for {_waiting_text(group, state)}: {waited:.0f} s{limit}")
            self._reminded[group.name] = count

    def _write(self, at: float, line: str) -> None:
        self._stream.write(f"{time.strftime('%H:%M:%S', time.localtime(at))}  {line}\n")


def failure_text(failure: FailureReported) -> str:
    """One line: the message, and where and how if it does not hold that."""
    more = [part for part in (failure.where, failure.how) if part and part not in failure.message]
    return failure.message + (f" [{', '.join(more)}]" if more else "")


def _attempt_text(state: RunState) -> str:
    text = f"attempt {state.attempt}"
    if state.nodes is not None:
        text += f" on {counted(state.nodes, 'node')}"
    shares = []
    if state.trainer_nodes is not None:
        ranks = f" ({counted(state.world_size, 'rank')})" if state.world_size is not None else ""
        shares.append(f"{state.trainer_nodes} train{ranks}")
    if state.inference_nodes is not None:
        replicas = f" ({counted(state.replicas, 'replica')})" if state.replicas is not None else ""
        shares.append(f"{state.inference_nodes} infer{replicas}")
    return ": ".join([text, ", ".join(shares)]) if shares else text


def _ended_text(name: str, phases: list[StartupPhase], state: RunState) -> str:
    took = duration(max((p.end or p.begin) - p.begin for p in phases))
    if name == NODES:
        return f"{counted(len(state.nodes_up), 'node')} up after {took}"
    if name == QUEUE:
        return f"the job started after {took} in the queue"
    if name == LAUNCH:
        return f"launched after {took}"
    return f"done: {name}, {listed(p.who for p in phases)}, {took}"


def _waiting_text(group: PhaseGroup, state: RunState) -> str:
    if group.name == QUEUE:
        return f"job {state.job_id} to start"
    if group.name == NODES:
        return f"nodes, {group.done} of {group.total} up"
    names = listed(group.waiting)
    return group.name if names == JOB else f"{group.name} {names}"


def _every(step_s: float | None) -> int:
    every, factors = 1, 0
    while step_s is not None and 0 < every * step_s < SHORTEST_STEP_LINE_S:
        every = every * 5 // 2 if factors % 3 == 1 else every * 2
        factors += 1
    return every


def _step_text(step: StepFinished, planned: int | None) -> str:
    parts = [f"step {step.step}/{planned}" if planned is not None else f"step {step.step}"]
    parts += step_figures(step)
    return "  ".join(parts)


def step_figures(step: StepFinished) -> list[str]:
    """``reward 0.512``, ``loss 0.031``, ...: those that the step has."""
    figures = []
    if step.reward is not None:
        figures.append(f"reward {step.reward:.3f}")
    if step.loss is not None:
        figures.append(f"loss {number(step.loss)}")
    if step.version is not None:
        figures.append(f"version {step.version}")
    if step.tokens_per_s is not None:
        figures.append(f"{number(step.tokens_per_s)} tokens/s")
    if step.sync_s is not None:
        figures.append(f"sync {duration(step.sync_s)}")
    if step.mismatch is not None:
        largest = f" (max {number(step.mismatch_max)})" if step.mismatch_max is not None else ""
        figures.append(f"mismatch {number(step.mismatch)}{largest}")
    return figures

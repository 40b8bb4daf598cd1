"""Reads one run directory as it grows, and makes the data of its page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from launcher.events.reader import RunFollower
from launcher.events.run_state import PhaseGroup, ProcessStatus, RunState
from launcher.layout.model import Layout
from launcher.observe.layouts import layout_of
from launcher.observe.run_status import RunStatus, statuses
from launcher.observe.run_summary import summarize
from launcher.observe.terminal.plain import failure_text
from launcher.observe.terminal.status_lines import replica_states, status_lines

FIGURES = ("reward", "loss", "tokens_per_s", "sync_s", "mismatch")
MOST_BARS = 24
"""Up to so many processes have bars of their own in the waterfall; of more, each phase has one."""

MOST_ENTRIES = 300
STATUS_EVERY_S = 2.0
FRESH_S = 300.0


class RunReader:
    """One run. :meth:`update` is called again and again; the other methods return what is known after it."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.number = 0
        """Grows with every change."""

        self._follower = RunFollower(run)
        self._attempt = 1
        self._layout: Layout = layout_of(run)
        self._status: RunStatus = self._look()
        self._looked = time.monotonic()

    @property
    def state(self) -> RunState:
        """Of the newest attempt, as far as it is read."""
        return self._follower.state

    def update(self) -> bool:
        """Reads what is new; True if there was something."""
        is_news = self._follower.read()
        if self._follower.attempt != self._attempt:
            self._attempt, self._layout = self._follower.attempt, layout_of(self.run)
        if time.monotonic() - self._looked >= STATUS_EVERY_S:
            before, self._status, self._looked = self._status, self._look(), time.monotonic()
            is_news = is_news or (before.state, before.job) != (self._status.state, self._status.job)
        self.number += is_news
        return is_news

    def _look(self) -> RunStatus:
        (status,), _ = statuses([summarize(self.run)], may_query=False)
        return status

    def layout(self) -> dict[str, Any]:
        """What stays the same during an attempt: nodes with their processes."""
        return {
            "attempt": self._attempt,
            "device": self._layout.device,
            "gpus_per_node": self._layout.gpus_per_node,
            "replicas": len(self._layout.replicas),
            "nodes": [
                {
                    "rank": node.node_rank,
                    "hostname": node.hostname,
                    "role": node.role.value,
                    "processes": [
                        [process.name, process.role.value, process.rank, list(process.gpus)]
                        for process in node.processes
                    ],
                }
                for node in self._layout.nodes
            ],
        }

    def data(self) -> dict[str, Any]:
        """What changes, but for the steps."""
        state, status, now = self.state, self._status, time.time()
        return {
            "name": self.run.name,
            "now": now,
            "attempt": self._attempt,
            "word": status.state,
            "is_over": status.is_over,
            "is_certain": self._is_certain(now),
            "began": state.began_at,
            "ended": state.finished_at,
            "steps_planned": state.steps_planned,
            "facts": [list(line) for line in status_lines(status, state, None, now=now) if line[0] != "state"],
            "up": sorted(state.nodes_up),
            "hostnames": dict(state.nodes_up),
            "lost": sorted(set(state.lost_nodes) - set(state.spares)),
            "processes": process_letters(self._layout, state),
            "replicas": self._replicas(),
            "versions": [
                [version, [replica for replica in range(state.replicas or 0) if replica not in took]]
                for version, took in state.recent_versions
            ],
            "waterfall": waterfall(state),
            "startup_s": state.startup_seconds(),
            "timeline": timeline(state),
            "failure": self._failure(),
            "checks": [[check.name, check.ok, check.text] for check in state.checks],
        }

    def steps(self, since: int = 0) -> dict[str, list[Any]]:
        """The figures of all steps after ``since`` of them."""
        steps = self.state.steps[since:]
        return {
            "step": [step.step for step in steps],
            "time": [step.time for step in steps],
            "version": [step.version for step in steps],
            **{name: [getattr(step, name) for step in steps] for name in FIGURES},
        }

    def _is_certain(self, now: float) -> bool:
        """SLURM is not queried here: a run that has logged its end, or an event lately, counts as certain."""
        is_fresh = self.state.outcome is not None or now - self.state.last_at < FRESH_S
        return self._status.is_certain or is_fresh

    def _replicas(self) -> list[list[Any]]:
        versions = self.state.versions
        return [[replica, word, versions.get(replica)] for replica, word in replica_states(self.state).items()]

    def _failure(self) -> dict[str, Any] | None:
        failure = self.state.failure
        if failure is None:
            return None
        victims = [later.where or later.message for later in self.state.failures[1:9]]
        return {
            "text": failure_text(failure),
            "log": failure.log,
            "tail": list(failure.tail),
            "victims": victims,
            "more": max(len(self.state.failures) - 9, 0),
        }


def waterfall(state: RunState) -> list[dict[str, Any]]:
    """Start-up phases in the order of their begin; ``end`` is None for one that lasts. Times are unix seconds."""
    bars: list[dict[str, Any]] = []
    for group in state.groups():
        if len(group.members) <= MOST_BARS // 4 or len(state.phases) <= MOST_BARS:
            bars += [
                {"phase": group.name, "who": phase.who, "begin": phase.begin, "end": phase.end, "count": 1}
                for phase in group.members
            ]
        else:
            bars.append(_folded(group))
    return bars


def _folded(group: PhaseGroup) -> dict[str, Any]:
    ends = [phase.end for phase in group.members if phase.end is not None]
    return {
        "phase": group.name,
        "who": f"{len(group.members)} processes",
        "begin": min(phase.begin for phase in group.members),
        "end": None if group.is_open else max(ends),
        "first_end": min(ends, default=None),
        "count": len(group.members),
    }


def timeline(state: RunState) -> list[list[Any]]:
    """What happened, in order: time, kind, text, whether it is bad."""
    found = [[entry.time, entry.kind, entry.text, entry.is_bad] for entry in state.timeline[-MOST_ENTRIES:]]
    if state.began_at is not None:
        found.append([state.began_at, "submitted", f"submitted to {state.cluster or 'the cluster'}", False])
    if state.first_step_at is not None:
        found.append([state.first_step_at, "step", "first step", False])
    found += [[failure.time, "failure", failure_text(failure), True] for failure in state.failures[:20]]
    if state.draining_at is not None:
        found.append([state.draining_at, "draining", "the trainer has finished; engines are draining", False])
    if state.finished_at is not None:
        found.append([state.finished_at, "finished", state.ending(), state.outcome == "failed"])
    return sorted(found, key=lambda item: item[0])


LETTERS = {
    ProcessStatus.WAITING: "w",
    ProcessStatus.STARTING: "s",
    ProcessStatus.RUNNING: "r",
    ProcessStatus.ENDED: "e",
    ProcessStatus.FAILED: "f",
    ProcessStatus.VICTIM: "v",
    ProcessStatus.LOST: "l",
}
"""One letter each: a page of thousands of processes gets one text a second."""


def process_letters(layout: Layout, state: RunState) -> str:
    """A letter for every process, in the order of the layout."""
    lost = set(state.node_losses) - set(state.spares)
    letters = []
    for node in layout.nodes:
        missing = ProcessStatus.LOST if node.node_rank in lost else ProcessStatus.WAITING
        if missing is ProcessStatus.WAITING and state.outcome is not None:
            missing = ProcessStatus.ENDED
        for process in node.processes:
            record = state.processes.get(process.name)
            letters.append(LETTERS[missing if record is None else record.status])
    return "".join(letters)

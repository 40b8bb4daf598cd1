"""What is going on in a run: its events, folded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from launcher.common.text import duration
from launcher.events.fields import integer, number, signal_of, text
from launcher.events.records import Check, Failure, Phase, PhaseGroup, Step
from launcher.events.supervision import Supervision

QUEUE = "queue"
LAUNCH = "launch"
NODES = "nodes"
ENGINE = "engine"
FIRST_STEP = "first step"
JOB = "job"
"""Whose phases those of the whole run are."""


@dataclass(slots=True, kw_only=True)
class RunState:
    """Everything a display shows. A new attempt starts it anew, except for the steps, which go on."""

    deadlines: dict[str, float] = field(default_factory=dict)
    """Longest wait in seconds, by phase."""

    run_dir: str | None = None
    cluster: str | None = None
    job_id: str | None = None
    attempt: int | None = None
    nodes: int | None = None
    trainer_nodes: int | None = None
    inference_nodes: int | None = None
    world_size: int | None = None
    replicas: int | None = None
    steps_planned: int | None = None
    steps: list[Step] = field(default_factory=list)

    began_at: float | None = None
    """Submission, or the first event when that was not recorded."""
    last_at: float = 0.0
    first_step_at: float | None = None
    draining_at: float | None = None
    finished_at: float | None = None
    outcome: str | None = None
    cancel_reason: str | None = None
    seconds: float | None = None
    phases: list[Phase] = field(default_factory=list)
    open_phases: dict[tuple[str, str], Phase] = field(default_factory=dict)
    """Those of ``phases`` that last, by name and process."""
    # So that no event of thousands of processes has to look at those of all the others.
    _open_of: dict[str, set[str]] = field(default_factory=dict)
    _begun: set[tuple[str, str]] = field(default_factory=set)
    nodes_up: dict[int, str] = field(default_factory=dict)
    """Hostname by node rank."""
    node_roles: dict[int, str] = field(default_factory=dict)
    engines: dict[int, str] = field(default_factory=dict)
    """URL by replica, of the replicas that are ready now."""
    checks: list[Check] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    supervision: Supervision = field(default_factory=Supervision)
    """Restarts, losses, checkpoints and the like; of all attempts, unlike the rest."""

    @property
    def last_step(self) -> Step | None:
        """The newest step."""
        return self.steps[-1] if self.steps else None

    @property
    def failure(self) -> Failure | None:
        """The first failure, which is the cause; what failed after it is its victim."""
        return self.failures[0] if self.failures else None

    def groups(self) -> list[PhaseGroup]:
        """Phases in the order they began, each with the latest of every process that had it."""
        by_name: dict[str, dict[str, Phase]] = {}
        for phase in self.phases:
            by_name.setdefault(phase.name, {})[phase.who] = phase
        known = {NODES: (len(self.nodes_up), self.nodes), ENGINE: (len(self.engines), self.replicas)}
        groups = []
        for name, members in by_name.items():
            done, total = known.get(name, (sum(p.end is not None for p in members.values()), None))
            total = max(total or len(members), done)
            groups.append(PhaseGroup(name=name, members=tuple(members.values()), done=done, total=total))
        return groups

    def ending(self) -> str:
        """``completed after 2 min 14 s``; with the reason when somebody asked for the end."""
        reason = f": {self.cancel_reason}" if self.cancel_reason else ""
        return f"{self.outcome} after {duration(self.elapsed(self.last_at))}{reason}"

    def elapsed(self, now: float) -> float:
        """Seconds since the submission, until the end if there was one."""
        end = self.finished_at if self.finished_at is not None else max(now, self.last_at)
        return end - self.began_at if self.began_at is not None else 0.0

    def startup_seconds(self) -> float | None:
        """Seconds from submission to the first step of this attempt."""
        if self.first_step_at is None or self.began_at is None:
            return None
        return self.first_step_at - self.began_at

    def step_seconds(self) -> float | None:
        """Median seconds between the last twenty steps."""
        times = [step.time for step in self.steps[-21:]]
        gaps = sorted(b - a for a, b in pairwise(times))
        return gaps[len(gaps) // 2] if gaps else None

    def apply(self, event: Mapping[str, Any]) -> None:
        """Folds one event. Unknown events, and fields that are missing or of another type, are passed over."""
        time = number(event.get("time"))
        if time is None:
            return
        self.last_at = max(self.last_at, time)
        if self.began_at is None:
            self.began_at = time
        handler = getattr(self, f"_on_{event.get('event')}", None)
        if handler is not None:
            handler(event, time)
        self.supervision.apply(event, time, nodes=self.nodes)

    def _on_submitted(self, event: Mapping[str, Any], time: float) -> None:
        if self.outcome is not None:
            self._start_anew()
            self.began_at = time
        self.cluster = text(event.get("cluster"))
        self.job_id = text(event.get("job_id"))
        # The job may have started before the submitting host, who learns its id from sbatch, could write this.
        if self.attempt is None:
            self._begin(QUEUE if self.cluster == "slurm" else LAUNCH, JOB, time)

    def _on_attempt(self, event: Mapping[str, Any], time: float) -> None:
        if self.attempt is not None:
            self._start_anew()
            self.began_at = time
        self.attempt = integer(event.get("attempt")) or 1
        self.job_id = text(event.get("job_id")) or self.job_id
        self.nodes = integer(event.get("nodes"))
        self.trainer_nodes = integer(event.get("trainer_nodes"))
        self.inference_nodes = integer(event.get("inference_nodes"))
        self.world_size = integer(event.get("world_size"))
        self.replicas = integer(event.get("replicas"))
        self._end(QUEUE, JOB, time)
        self._end(LAUNCH, JOB, time)
        self._begin(NODES, JOB, time)
        self._end_nodes(time)

    def _on_node_up(self, event: Mapping[str, Any], time: float) -> None:
        node_rank = integer(event.get("node_rank"))
        if node_rank is not None:
            self.nodes_up[node_rank] = text(event.get("hostname")) or f"node {node_rank}"
            self.node_roles[node_rank] = text(event.get("role")) or ""
        self._end_nodes(time)

    def _on_replica(self, event: Mapping[str, Any], time: float) -> None:
        replica = integer(event.get("replica"))
        if replica is not None and event.get("state") in ("lost", "dropped"):
            self.engines.pop(replica, None)

    def _on_spare(self, event: Mapping[str, Any], time: float) -> None:
        # The place in the layout stays; another machine fills it.
        place = integer(event.get("slot", event.get("takes")))
        if place is not None:
            self.nodes_up[place] = text(event.get("hostname")) or f"node {place}"
            self.node_roles[place] = text(event.get("role")) or self.node_roles.get(place, "")

    def _on_phase(self, event: Mapping[str, Any], time: float) -> None:
        name, who = text(event.get("phase")), text(event.get("who"))
        if name is None or who is None:
            return
        if event.get("state") == "begin":
            self._begin(name, who, time)
        elif event.get("state") == "end":
            self._end(name, who, time)

    def _on_process(self, event: Mapping[str, Any], time: float) -> None:
        rank = integer(event.get("rank"))
        if event.get("role") != "inference" or rank is None:
            return
        if event.get("state") == "ended":
            self.engines.pop(rank, None)
        elif event.get("name") == f"inference-{rank}":
            self._begin(ENGINE, f"inference-{rank}", time)

    def _on_engine_ready(self, event: Mapping[str, Any], time: float) -> None:
        replica = integer(event.get("replica"))
        if replica is None:
            return
        self.engines[replica] = text(event.get("url")) or ""
        who, seconds = f"inference-{replica}", number(event.get("seconds"))
        if seconds is not None and (ENGINE, who) not in self._begun:
            self._begin(ENGINE, who, time - seconds)
        for name in list(self._open_of.get(who, ())):
            self._end(name, who, time)

    def _on_step(self, event: Mapping[str, Any], time: float) -> None:
        index = integer(event.get("step"))
        if index is None:
            return
        if self.first_step_at is None:
            self.first_step_at = time
            for name, who in list(self.open_phases):
                if name == FIRST_STEP:
                    self._end(name, who, time)
        # After a restart from a checkpoint the steps since then are done again.
        while self.steps and self.steps[-1].step >= index:
            self.steps.pop()
        self.steps_planned = integer(event.get("steps")) or self.steps_planned
        numbers = ("reward", "loss", "tokens_per_s", "sync_s", "mismatch", "mismatch_max")
        found = {name: number(event.get(name)) for name in numbers}
        version = integer(event.get("version"))
        self.steps.append(Step(step=index, time=time, version=version, **found))
        if version is not None:
            self.supervision.stepped(version, self.engines)

    def _on_check(self, event: Mapping[str, Any], time: float) -> None:
        name = text(event.get("name")) or "check"
        self.checks.append(Check(name=name, ok=event.get("ok") is True, text=text(event.get("text")) or ""))

    def _on_failure(self, event: Mapping[str, Any], time: float) -> None:
        tail = event.get("tail")
        lines = tail.splitlines() if isinstance(tail, str) else tail if isinstance(tail, list) else []
        self.failures.append(
            Failure(
                message=text(event.get("message")) or "a process failed",
                time=time,
                role=text(event.get("role")),
                hostname=text(event.get("hostname")),
                log=text(event.get("log")),
                tail=tuple(str(line) for line in lines),
                signal=signal_of(event),
                **{key: integer(event.get(key)) for key in ("node_rank", "rank", "exit_code")},
            )
        )

    def _on_cancelled(self, event: Mapping[str, Any], time: float) -> None:
        self.cancel_reason = text(event.get("message"))

    def _on_draining(self, event: Mapping[str, Any], time: float) -> None:
        self.draining_at = time

    def _on_finished(self, event: Mapping[str, Any], time: float) -> None:
        self.finished_at = time
        self.outcome = text(event.get("outcome")) or "completed"
        self.seconds = number(event.get("seconds"))

    def _start_anew(self) -> None:
        if self.attempt is not None:
            how = self.outcome or "ended without a word"
            self.supervision.attempt_ended(self.attempt, how, self.last_step.step if self.last_step else None)
        fresh = RunState()
        for name in ("attempt", "first_step_at", "draining_at", "finished_at", "outcome", "cancel_reason", "seconds"):
            setattr(self, name, getattr(fresh, name))
        for name in (
            "phases",
            "open_phases",
            "_open_of",
            "_begun",
            "nodes_up",
            "node_roles",
            "engines",
            "checks",
            "failures",
        ):
            setattr(self, name, getattr(fresh, name))

    def _begin(self, name: str, who: str, time: float) -> None:
        if (name, who) not in self.open_phases:
            phase = Phase(name=name, who=who, begin=time)
            self.phases.append(phase)
            self.open_phases[name, who] = phase
            self._open_of.setdefault(who, set()).add(name)
            self._begun.add((name, who))

    def _end(self, name: str, who: str, time: float) -> None:
        phase = self.open_phases.pop((name, who), None)
        if phase is not None:
            phase.end = time
            self._open_of[who].discard(name)

    def _end_nodes(self, time: float) -> None:
        if self.nodes is not None and len(self.nodes_up) >= self.nodes:
            self._end(NODES, JOB, time)

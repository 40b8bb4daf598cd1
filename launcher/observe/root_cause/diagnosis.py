"""One cause for each attempt of a run: from the run directory and the state of its SLURM job."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.common.run_dir import SUBMITIT
from launcher.events.failure_kinds import ADVICE, Advice, FailureKind, Retry
from launcher.events.log_rules import SLURM_STATES
from launcher.events.log_tail import analyze_log, end_of
from launcher.observe.root_cause.evidence import Evidence, FailureCandidate, attempts_of, gather
from launcher.slurm.states import JobState

_VAGUENESS = {
    FailureKind.UNKNOWN: 2,
    FailureKind.CONNECTION: 2,
    FailureKind.KILLED: 1,
    FailureKind.USER_CODE: 1,
}
"""How little a kind explains by itself; the others explain everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RootCause:
    """The cause, and what followed."""

    cause: FailureCandidate
    victims: tuple[FailureCandidate, ...]
    """In the order of time."""


def find_root_cause(candidates: Sequence[FailureCandidate]) -> RootCause | None:
    """Finds the cause; None if nothing failed.

    A failure that blames something else is a cause only if there is no other: a rank that is killed writes nothing,
    while its peers write ``Connection reset by peer`` at once. Of the rest the earliest counts. Two whose times cannot
    be told apart, because clocks and polls are only so exact, are ordered by how much they explain.
    """
    if not candidates:
        return None
    causes = [candidate for candidate in candidates if not candidate.is_symptom] or list(candidates)
    bound = min(_time(candidate) + candidate.error_s for candidate in causes)
    tied = [candidate for candidate in causes if _time(candidate) - candidate.error_s <= bound]
    cause = min(tied, key=lambda found: (not found.is_reported, _VAGUENESS.get(found.kind, 0), _time(found)))
    victims = sorted((candidate for candidate in candidates if candidate is not cause), key=_time)
    return RootCause(cause=cause, victims=tuple(victims))


def _time(candidate: FailureCandidate) -> float:
    return candidate.time if candidate.time is not None else float("inf")


QueryJobState = Callable[[Path], JobState | None]
"""Queries SLURM for the state of a run's job; None if it is no job, or SLURM does not answer."""

NO_OUTPUT = 128 + 53
"""SLURM's exit code ``0:53``: it could not open the file for the job's output, or enter its directory."""

SCRIPT_LINES = 12

_REASONS = {
    "preemption": FailureKind.PREEMPTED,
    "requeue": FailureKind.PREEMPTED,
    "preempted": FailureKind.PREEMPTED,
    "time limit": FailureKind.TIMED_OUT,
    "timed out": FailureKind.TIMED_OUT,
}
"""What the reason of a ``stopping`` or ``requeued`` event means; any other is a person's request."""

_REQUESTS = ("request", "stopped")
"""Reasons of those events for a SIGUSR2 that a person sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptDiagnosis:
    """One attempt."""

    attempt: int
    outcome: str
    """``completed``, ``failed``, ``cancelled``, or ``no final event``."""

    seconds: float | None
    cause: FailureCandidate | None
    victims: tuple[FailureCandidate, ...] = ()
    advice: Advice | None = None
    recovered: tuple[str, ...] = ()
    """Failures that the run recovered from: restarts, replicas and nodes that it went on without."""

    def to_json(self) -> dict[str, Any]:
        """For ``why --json``."""
        return {**asdict(self), "retry": self.advice.retry.value if self.advice else None}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDiagnosis:
    """A run."""

    run_dir: Path
    slurm: str | None
    """State of the job, as SLURM calls it."""

    attempts: tuple[AttemptDiagnosis, ...]

    @property
    def last(self) -> AttemptDiagnosis | None:
        """The attempt that counts."""
        return self.attempts[-1] if self.attempts else None

    def to_json(self) -> dict[str, Any]:
        """For ``why --json``."""
        return {
            "run_dir": str(self.run_dir),
            "slurm": self.slurm,
            "attempts": [attempt.to_json() for attempt in self.attempts],
        }


def diagnose(run_dir: Path, query_slurm: QueryJobState = lambda _: None) -> RunDiagnosis:
    """Reads all attempts. Works on a directory alone, half written, or without a final event of node 0."""
    found = [gather(run_dir, number) for number in attempts_of(run_dir)]
    state = query_slurm(run_dir)
    slurm = state.name if state is not None else None
    if not found and (slurm in SLURM_STATES or slurm == "FAILED"):
        found = [Evidence(attempt=1)]
    explained = [_diagnosed(evidence, slurm if evidence is found[-1] else None) for evidence in found]
    if explained and state is not None and slurm == "FAILED" and not found[-1].has_events:
        cause = _job_script(run_dir, state)
        explained[-1] = dataclasses.replace(explained[-1], cause=cause, advice=_advice(cause))
    return RunDiagnosis(run_dir=run_dir, slurm=slurm, attempts=tuple(explained))


def _diagnosed(evidence: Evidence, slurm: str | None) -> AttemptDiagnosis:
    found = _root_cause(evidence, slurm)
    began_at = evidence.state.began_at
    seconds = None if began_at is None else evidence.state.last_at - began_at
    outcome = evidence.state.outcome or ("no final event" if slurm is None or slurm in SLURM_STATES else slurm.lower())
    is_over = evidence.state.outcome is not None or slurm is None or slurm in SLURM_STATES or slurm == "FAILED"
    recovered = tuple(_recovered(evidence))
    if found is None or outcome == "completed" or not is_over:
        return AttemptDiagnosis(
            attempt=evidence.attempt, outcome=outcome, seconds=seconds, cause=None, recovered=recovered
        )
    return AttemptDiagnosis(
        attempt=evidence.attempt,
        outcome=outcome,
        seconds=seconds,
        cause=found.cause,
        victims=found.victims,
        advice=_advice(found.cause),
        recovered=recovered,
    )


def _root_cause(evidence: Evidence, slurm: str | None) -> RootCause | None:
    candidates = list(evidence.candidates)
    ended = _ended_from_outside(evidence, slurm)
    if ended is not None:
        # Whatever fails after the order to end is a consequence of it; what failed before it is not.
        before = [s for s in candidates if not s.is_symptom and s.time is not None and _is_before(s, ended)]
        if not before:
            return RootCause(cause=ended, victims=tuple(candidates))
        candidates.append(ended)
    if not candidates and evidence.is_silent:
        return RootCause(cause=_node_0_lost(evidence, slurm), victims=())
    if evidence.is_silent and all(candidate.is_symptom for candidate in candidates):
        # The others report only that node 0 is gone.
        return RootCause(cause=_node_0_lost(evidence, slurm), victims=tuple(candidates))
    return find_root_cause(candidates)


def _ended_from_outside(evidence: Evidence, slurm: str | None) -> FailureCandidate | None:
    if slurm in ("TIMEOUT", "DEADLINE", "PREEMPTED") or (slurm == "CANCELLED" and evidence.state.outcome != "failed"):
        kind, line = SLURM_STATES[slurm], f"SLURM ended the job: {slurm}"
    elif evidence.end_reason is not None or evidence.state.outcome == "cancelled":
        reason = evidence.end_reason or "its end was requested"
        kind = _REASONS.get(reason, FailureKind.CANCELLED)
        line = "a stop with a checkpoint was requested" if reason in _REQUESTS else reason
    else:
        return None
    requests = [event.time for event in (evidence.state.stopping, evidence.state.cancelled) if event is not None]
    return FailureCandidate(
        who="job", kind=kind, is_symptom=False, line=line, time=min(requests, default=evidence.state.last_at)
    )


def _is_before(candidate: FailureCandidate, ended: FailureCandidate) -> bool:
    return ended.time is not None and candidate.time is not None and candidate.time + candidate.error_s < ended.time


def _node_0_lost(evidence: Evidence, slurm: str | None) -> FailureCandidate:
    kind = SLURM_STATES.get(slurm or "", FailureKind.NODE_LOST if evidence.has_events else FailureKind.UNKNOWN)
    line = "node 0 wrote no final event" if evidence.has_events else "no node wrote anything"
    return FailureCandidate(
        who="node 0",
        kind=kind,
        is_symptom=False,
        line=f"{line}; the job's state is {slurm}" if slurm else line,
        time=evidence.state.last_at if evidence.has_events else None,
        role=evidence.state.node_roles.get(0),
        node_rank=0 if evidence.has_events else None,
        hostname=evidence.state.nodes_up.get(0),
    )


def _job_script(run_dir: Path, state: JobState) -> FailureCandidate:
    """Why the job script ended before any node wrote anything: by its own log."""
    if state.exit_code == NO_OUTPUT:
        message = f"SLURM could not begin the job: it can write no output below {run_dir} (exit code 0:53)."
        line = "the directory is missing there, is read-only, or its disk or quota is full"
        return FailureCandidate(who="job", kind=FailureKind.DISK, is_symptom=False, line=line, message=message)
    logs = sorted((run_dir / SUBMITIT).glob("*.out"), key=lambda path: path.stat().st_mtime)
    finding = analyze_log(end_of(logs[-1])) if logs else None
    line = finding.line if finding is not None else "it wrote nothing"
    kind = finding.kind if finding is not None else FailureKind.UNKNOWN
    return FailureCandidate(
        who="job",
        # What else does a job script do before its nodes start than what the site needs (`cluster.setup`)?
        kind=FailureKind.CONFIGURATION if kind is FailureKind.UNKNOWN and logs else kind,
        is_symptom=False,
        line=line,
        message=f"the job script ended with exit code {state.exit_code} before any node had started: {line}",
        lines=finding.lines[-SCRIPT_LINES:] if finding is not None else (),
        log=str(logs[-1]) if logs else None,
    )


def _recovered(evidence: Evidence) -> list[str]:
    """What the run recovered from: restarts, replicas and nodes that it went on without."""
    kinds = ("restart", "replica", "spare")
    entries = [entry for entry in evidence.state.timeline if entry.kind in kinds]
    return [entry.text for entry in entries if entry.kind != "replica" or entry.is_bad]


def _advice(cause: FailureCandidate) -> Advice:
    advice = ADVICE[cause.kind]
    if cause.kind is FailureKind.USER_CODE and cause.role == "inference":
        return Advice(retry=Retry.NO, hint="the engine raised it; `inference.args` or the model do not suit it")
    return advice

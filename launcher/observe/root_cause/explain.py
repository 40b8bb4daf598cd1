"""One cause for each attempt of a run: from the run directory and, if it says more, from SLURM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.events.failure_kinds import ADVICE, Advice, FailureKind, Retry
from launcher.events.log_rules import SLURM_STATES
from launcher.observe.root_cause.candidate import Suspect
from launcher.observe.root_cause.evidence import Evidence, attempts_of, gather
from launcher.observe.root_cause.find_root_cause import Judgement, judge

SlurmWord = Callable[[Path], str | None]
"""Asks SLURM for the state of a run's job; None if it is not a job, or SLURM does not say."""

_WORDS = (("preempt", FailureKind.PREEMPTED), ("time limit", FailureKind.TIMED_OUT), ("time", FailureKind.TIMED_OUT))


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """One attempt."""

    attempt: int
    outcome: str
    """``completed``, ``failed``, ``cancelled``, or ``no last word``."""

    seconds: float | None
    cause: Suspect | None
    victims: tuple[Suspect, ...] = ()
    advice: Advice | None = None
    survived: tuple[str, ...] = ()
    """Failures that the run got over: restarts, replicas and nodes that it went on without."""

    def to_json(self) -> dict[str, Any]:
        """For ``why --json``."""
        return {**asdict(self), "retry": self.advice.retry.value if self.advice else None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A run."""

    run_dir: Path
    slurm: str | None
    """SLURM's word for the job's state."""

    attempts: tuple[Explained, ...]

    @property
    def last(self) -> Explained | None:
        """The attempt that counts."""
        return self.attempts[-1] if self.attempts else None

    def to_json(self) -> dict[str, Any]:
        """For ``why --json``."""
        return {
            "run_dir": str(self.run_dir),
            "slurm": self.slurm,
            "attempts": [attempt.to_json() for attempt in self.attempts],
        }


def explain(run_dir: Path, ask_slurm: SlurmWord = lambda _: None) -> Explanation:
    """Reads all attempts. Works on a directory alone, half written, or without a last word of node 0."""
    numbers = attempts_of(run_dir)
    found = [gather(run_dir, number) for number in numbers]
    slurm = ask_slurm(run_dir)
    explained = [
        _explained(evidence, slurm if number == numbers[-1] else None)
        for number, evidence in zip(numbers, found, strict=True)
    ]
    if not explained and slurm in SLURM_STATES:
        explained = [_explained(Evidence(attempt=1, directory=run_dir), slurm)]
    return Explanation(run_dir=run_dir, slurm=slurm, attempts=tuple(explained))


def _explained(evidence: Evidence, slurm: str | None) -> Explained:
    found = _judged(evidence, slurm)
    seconds = None if evidence.began is None or evidence.last is None else evidence.last - evidence.began
    outcome = evidence.outcome or ("no last word" if slurm is None or slurm in SLURM_STATES else slurm.lower())
    is_over = evidence.outcome is not None or slurm is None or slurm in SLURM_STATES or slurm == "FAILED"
    survived = tuple(_survived(evidence))
    if found is None or outcome == "completed" or not is_over:
        return Explained(attempt=evidence.attempt, outcome=outcome, seconds=seconds, cause=None, survived=survived)
    return Explained(
        attempt=evidence.attempt,
        outcome=outcome,
        seconds=seconds,
        cause=found.cause,
        victims=found.victims,
        advice=_advice(found.cause),
        survived=survived,
    )


def _judged(evidence: Evidence, slurm: str | None) -> Judgement | None:
    suspects = list(evidence.suspects)
    ended = _ended_from_outside(evidence, slurm)
    if ended is not None:
        # Whatever fails after the order to end is a consequence of it; what failed before it is not.
        before = [s for s in suspects if not s.is_symptom and s.time is not None and _is_before(s, ended)]
        if not before:
            return Judgement(cause=ended, victims=tuple(suspects))
        suspects.append(ended)
    if not suspects and evidence.is_silent:
        return Judgement(cause=_silence(evidence, slurm), victims=())
    if evidence.is_silent and all(suspect.is_symptom for suspect in suspects):
        # All that the others say is that node 0 is gone.
        return Judgement(cause=_silence(evidence, slurm), victims=tuple(suspects))
    return judge(suspects)


def _ended_from_outside(evidence: Evidence, slurm: str | None) -> Suspect | None:
    if slurm in ("TIMEOUT", "DEADLINE", "PREEMPTED") or (slurm == "CANCELLED" and evidence.outcome != "failed"):
        kind, line = SLURM_STATES[slurm], f"SLURM ended the job: {slurm}"
    elif evidence.stopping is not None or evidence.outcome == "cancelled":
        reason = evidence.stopping or "somebody asked for the end"
        kind = next((kind for word, kind in _WORDS if word in reason.lower()), FailureKind.CANCELLED)
        line = reason
    else:
        return None
    event = next((e for e in evidence.events if e.get("event") in ("stopping", "cancelled")), {})
    return Suspect(who="job", kind=kind, is_symptom=False, line=line, time=event.get("time", evidence.last))


def _is_before(suspect: Suspect, ended: Suspect) -> bool:
    return ended.time is not None and suspect.time is not None and suspect.time + suspect.error_s < ended.time


def _silence(evidence: Evidence, slurm: str | None) -> Suspect:
    up = next((e for e in evidence.events if e.get("event") == "node_up" and e.get("node_rank") == 0), {})
    kind = SLURM_STATES.get(slurm or "", FailureKind.NODE_LOST if evidence.events else FailureKind.UNKNOWN)
    said = f"SLURM says {slurm}" if slurm else "SLURM says nothing"
    line = "node 0 wrote no last word" if evidence.events else "no node wrote anything"
    return Suspect(
        who="node 0",
        kind=kind,
        is_symptom=False,
        line=f"{line}; {said}",
        time=evidence.last,
        role=up.get("role"),
        node_rank=0 if evidence.events else None,
        hostname=up.get("hostname"),
    )


def _survived(evidence: Evidence) -> list[str]:
    told = []
    for event in evidence.events:
        if event.get("event") == "restart":
            which = f" of replica {event['replica']}" if event.get("replica") is not None else ""
            count = event.get("restart_count", event.get("restart"))
            told.append(f"restart {count} of {event.get('what')}{which}: {event.get('reason')}")
        elif event.get("event") == "replica" and event.get("state") == "dropped":
            told.append(f"replica {event.get('replica')} was dropped: {event.get('reason')}")
        elif event.get("event") == "spare":
            told.append(f"{event.get('hostname')} took the place of node {event.get('slot', event.get('takes'))}")
    return told


def _advice(cause: Suspect) -> Advice:
    advice = ADVICE[cause.kind]
    if cause.kind is FailureKind.USER_CODE and cause.role == "inference":
        return Advice(retry=Retry.NO, hint="the engine raised it; `inference.args` or the model do not suit it")
    return advice

"""The diagnosis as people read it."""

from __future__ import annotations

import time
from collections.abc import Iterator

from launcher.common.text import duration
from launcher.observe.root_cause.diagnosis import AttemptDiagnosis, RunDiagnosis
from launcher.observe.root_cause.evidence import FailureCandidate

MOST_VICTIMS = 8
MOST_LINES = 20
MOST_LETTERS = 160


def render(diagnosis: RunDiagnosis) -> str:
    """The last attempt in full, those before it in one line each."""
    last = diagnosis.last
    if last is None:
        slurm = f"; the job's state is {diagnosis.slurm}" if diagnosis.slurm else ""
        return f"Nothing was recorded: no node of the run ever started{slurm}."
    lines = [_one_line(attempt) for attempt in diagnosis.attempts[:-1]]
    slurm = f" (SLURM: {diagnosis.slurm})" if diagnosis.slurm else ""
    after = f" after {duration(last.seconds)}" if last.seconds is not None else ""
    lines.append(f"attempt {last.attempt}: {last.outcome}{after}{slurm}")
    lines += [f"  recovered: {text}" for text in last.recovered]
    return "\n".join([*lines, *_why(last)])


def cause_block(last: AttemptDiagnosis) -> list[str]:
    """The lines from ``Cause:`` on; empty if there is none to name."""
    return list(_why(last))


def _why(attempt: AttemptDiagnosis) -> Iterator[str]:
    cause = attempt.cause
    if cause is None:
        return
    yield ""
    yield f"Cause: {cause.sentence}"
    yield _row("kind", f"{cause.kind.text}{_clock(cause)}")
    if cause.line not in cause.sentence:
        yield _row("because", cause.line)
    if cause.log is not None:
        yield _row("log", cause.log)
    yield from (f"    | {line}" for line in cause.lines[-MOST_LINES:])
    if attempt.victims:
        victims = [f"{victim.where} ({victim.kind.text}{_clock(victim)})" for victim in attempt.victims[:MOST_VICTIMS]]
        more = len(attempt.victims) - len(victims)
        yield f"Failed because of it: {'; '.join(victims)}{f'; and {more} more' if more else ''}"
    if attempt.advice is not None:
        yield _row("retry", f"{attempt.advice.retry}. HINT: {attempt.advice.hint}.")


def _row(label: str, text: str) -> str:
    return f"  {label:<12}{text}"


def _one_line(attempt: AttemptDiagnosis) -> str:
    cause = attempt.cause
    why = f": {cause.kind.text}, {cause.where}: {_short(cause)}" if cause is not None else ""
    return f"attempt {attempt.attempt}: {attempt.outcome}{why}"


def _short(candidate: FailureCandidate) -> str:
    if len(candidate.line) <= MOST_LETTERS:
        return candidate.line
    begin, hint = candidate.line[:MOST_LETTERS], candidate.line.partition("HINT: ")[2]
    return f"{begin} ... HINT: {hint[:MOST_LETTERS]}" if hint and "HINT: " not in begin else f"{begin} ..."


def _clock(candidate: FailureCandidate) -> str:
    if candidate.time is None:
        return ""
    return f" at {time.strftime('%H:%M:%S', time.localtime(candidate.time))}.{int(candidate.time * 10) % 10}"

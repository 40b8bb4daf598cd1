"""Compares what followed a fault with the policy; keeps the results as JSON lines, and shows them as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from launcher.common.codec import from_builtins, to_builtins
from launcher.common.jsonio import append_line, read_lines, write_text
from launcher.common.text import aligned
from launcher.events.fold import apply_event
from launcher.events.run_state import RunState
from launcher.events.schema import (
    AnswersChecked,
    AttemptFinished,
    AttemptStarted,
    Event,
    FailureReported,
    JobRequeued,
    MomentReached,
    NodeLost,
    ReplicaChanged,
    RestartScheduled,
    RunCancelled,
    SpareAssigned,
    StepFinished,
    StopRequested,
)
from launcher.testing.chaos.cases import CASES, Case, Moment
from launcher.testing.chaos.observe import lost_steps

HANG_S = 30.0
"""A run that records no event about a fault for longer than this hangs."""

CLOCK_S = 0.05
"""By so much the times of two processes may be in the wrong order."""

NOTICING_EVENTS = (
    FailureReported,
    RestartScheduled,
    ReplicaChanged,
    NodeLost,
    SpareAssigned,
    StopRequested,
    RunCancelled,
    JobRequeued,
    AttemptFinished,
    AttemptStarted,
)
"""Events that show that the run has noticed."""

HEADER = ("case", "moment", "followed", "noticed", "next step", "ended", "attempts", "left", "answers", "as it should")
RESULTS, TABLE = "faults.jsonl", "faults.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """What followed one fault."""

    case: str
    moment: str
    followed: str = "nothing"
    """The first events after it."""

    next_state_s: float | None = None
    """Seconds from the fault to the first of them."""

    back_s: float | None = None
    """Seconds from the fault to the next finished step."""

    outcome: str = "not reached"
    attempts: int = 0
    seconds: float = 0.0
    """Of the whole run."""

    leaks: tuple[str, ...] = ()
    """Processes and shared memory that the run left behind."""

    answers: int = 0
    """That the engines gave and whose versions were compared."""

    wrong: tuple[str, ...] = ()
    """Answers that were not of the weights that they had to be of."""

    surprises: tuple[str, ...] = ()
    """Differences to the policy; empty when there are none."""

    run_dir: str = ""


def label(event: Event) -> str:
    """An event in a word or two: ``restart engine``."""
    more = next((text for name in ("what", "state", "outcome") if (text := getattr(event, name, None))), "")
    return f"{event.event_name} {more}".strip()


def is_noticed(event: Event, at: float) -> bool:
    """Whether an event shows that the run has noticed a fault injected at ``at``."""
    if isinstance(event, AttemptStarted) and event.attempt == 1:
        return False
    return isinstance(event, NOTICING_EVENTS) and event.time >= at - CLOCK_S


def evaluate(
    case: Case,
    moment: Moment,
    events: Mapping[int, Sequence[Event]],
    at: float,
    *,
    leaks: Sequence[str] = (),
    is_hanging: bool = False,
) -> CaseResult:
    """What followed a fault, and where that differs from ``case.policy``.

    Args:
        events: by attempt.
        at: unix seconds of the injection.
        leaks: what the run left behind.
    """
    policy = case.policy
    every = [event for number in sorted(events) for event in events[number]]
    after = [event for event in every if is_noticed(event, at)]
    attempts = max(events, default=0)
    last = RunState()
    for event in events.get(attempts, ()):
        apply_event(last, event)
    outcome = "hangs" if is_hanging else last.outcome or "no last event"
    steps = [event.time for event in every if isinstance(event, StepFinished) and event.time > at]
    reports = _last_reports(every)
    wrong = tuple(text for report in reports for text in report.wrong)
    next_state_s = max(0.0, after[0].time - at) if after else None
    surprises = []
    if outcome != policy.outcome:
        surprises.append(f"it {outcome}, not {policy.outcome}")
    if attempts != policy.attempts:
        surprises.append(f"{attempts} attempts, not {policy.attempts}")
    labels = [label(event) for event in after]
    seen = {*labels, *(event.event_name for event in after)}
    surprises += [f"no {name}" for name in sorted(policy.required - seen)]
    surprises += sorted(policy.forbidden & seen)
    surprises += [*lost_steps(every), *_repeated_steps(every)]
    if policy.is_noticed and (next_state_s is None or next_state_s > HANG_S):
        surprises.append(f"no event for {HANG_S:g} s")
    if leaks:
        surprises.append(f"left behind: {len(leaks)}")
    if wrong:
        surprises.append(f"{len(wrong)} answers of wrong weights")
    distinct = [text for text, before in zip(labels, [None, *labels], strict=False) if text != before]
    return CaseResult(
        case=case.name,
        moment=moment.value,
        followed=", ".join(distinct[:5]) or "nothing",
        next_state_s=next_state_s,
        back_s=steps[0] - at if steps else None,
        outcome=outcome,
        attempts=attempts,
        leaks=tuple(leaks),
        answers=sum(report.answers for report in reports),
        wrong=wrong,
        surprises=tuple(surprises),
    )


def table(results: Iterable[CaseResult]) -> str:
    """One line for each fault, in the order of the cases."""
    order = {case.name: index for index, case in enumerate(CASES)}
    moments = list(Moment)
    ordered = sorted(results, key=lambda result: (order.get(result.case, -1), moments.index(Moment(result.moment))))
    return "\n".join(aligned([HEADER, *map(_row, ordered)], right=(3, 4, 6, 7, 8)))


def load(folder: Path) -> dict[tuple[str, str], CaseResult]:
    """The last result of each scenario."""
    results = [from_builtins(line, CaseResult) for line in read_lines(folder / RESULTS)]
    return {(result.case, result.moment): result for result in results}


def add(result: CaseResult, folder: Path) -> None:
    """Keeps one more result, and the table as it is now."""
    append_line(folder / RESULTS, to_builtins(result))
    write_text(folder / TABLE, table(load(folder).values()) + "\n")


def _row(result: CaseResult) -> Sequence[str]:
    return (
        result.case,
        result.moment,
        result.followed,
        _seconds(result.next_state_s),
        _seconds(result.back_s),
        result.outcome,
        str(result.attempts),
        str(len(result.leaks)),
        f"{result.answers}" if not result.wrong else f"{len(result.wrong)} wrong",
        "; ".join(result.surprises) or "yes",
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _last_reports(events: Sequence[Event]) -> list[AnswersChecked]:
    """The last report of each client process, since its counters start with it."""
    served = [event for event in events if isinstance(event, AnswersChecked)]
    return [
        event
        for event, following in zip_longest(served, served[1:])
        if following is None or following.step <= event.step or following.answers < event.answers
    ]


def _repeated_steps(events: Sequence[Event]) -> list[str]:
    """Steps that were done again although a checkpoint held them."""
    state, problems = RunState(), []
    for event in events:
        if (
            isinstance(event, MomentReached)
            and event.moment == Moment.STEP
            and (event.step or 0) <= (state.checkpoint_step or 0)
        ):
            problems.append(f"step {event.step} was done again, though it was saved")
        apply_event(state, event)
    return problems

"""Compares what followed a fault with the policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any, Self

from launcher.testing.chaos.cases import Case, Moment
from launcher.testing.chaos.observe import Event

HANG_S = 30.0
"""A run that records no event about a fault for longer than this hangs."""

CLOCK_S = 0.05
"""By so much the times of two processes may be in the wrong order."""

NOTICING_EVENTS = frozenset(
    {"failure", "restart", "replica", "node_lost", "spare", "stopping", "cancelled", "requeued", "finished", "attempt"}
)
"""Events that say that the run has noticed."""


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

    left: tuple[str, ...] = ()
    """Processes and shared memory that the run left behind."""

    answers: int = 0
    """That the engines gave and whose versions were looked at."""

    wrong: tuple[str, ...] = ()
    """Answers that were not of the weights that they had to be of."""

    surprises: tuple[str, ...] = ()
    """Differences to the policy; empty when there are none."""

    run_dir: str = ""

    def to_json(self) -> dict[str, Any]:
        """For the file."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The result of its JSON form."""
        lists: dict[str, Any] = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
        return cls(**{**data, **lists})


def word(event: Event) -> str:
    """An event in a word or two: ``restart engine``."""
    more = event.get("what") or event.get("state") or event.get("outcome") or ""
    return f"{event['event']} {more}".strip()


def is_noticed(event: Event, at: float) -> bool:
    """Whether an event shows that the run has noticed a fault injected at ``at``."""
    if event["event"] == "attempt" and event["attempt_number"] == 1:
        return False
    return event["event"] in NOTICING_EVENTS and event["time"] >= at - CLOCK_S


def evaluate(
    case: Case,
    moment: Moment,
    events: Sequence[Event],
    at: float,
    *,
    left: Sequence[str] = (),
    is_hanging: bool = False,
) -> CaseResult:
    """What followed a fault injected at ``at``, and where that differs from ``case.policy``."""
    policy = case.policy
    after = [event for event in events if is_noticed(event, at)]
    names = [word(event) for event in after]
    attempts = max((event["attempt_number"] for event in events), default=0)
    last = [event for event in events if event["attempt_number"] == attempts]
    finished = next((event for event in last if event["event"] == "finished"), None)
    outcome = "hangs" if is_hanging else str(finished["outcome"]) if finished else "no last word"
    steps = [event["time"] for event in events if event["event"] == "step" and event["time"] > at]
    wrong = tuple(text for event in _last_words(events) for text in event["wrong"])
    next_state_s = max(0.0, after[0]["time"] - at) if after else None
    surprises = []
    if outcome != policy.outcome:
        surprises.append(f"it {outcome}, not {policy.outcome}")
    if attempts != policy.attempts:
        surprises.append(f"{attempts} attempts, not {policy.attempts}")
    seen = {*names, *(event["event"] for event in after)}
    surprises += [f"no {name}" for name in sorted(policy.needs - seen)]
    surprises += [f"{name}" for name in sorted(policy.spares & seen)]
    surprises += _lost_steps(events)
    if policy.is_noticed and (next_state_s is None or next_state_s > HANG_S):
        surprises.append(f"no event for {HANG_S:g} s")
    if left:
        surprises.append(f"left behind: {len(left)}")
    if wrong:
        surprises.append(f"{len(wrong)} answers of wrong weights")
    return CaseResult(
        case=case.name,
        moment=moment.value,
        followed=", ".join(_without_repeats(names)[:5]) or "nothing",
        next_state_s=next_state_s,
        back_s=steps[0] - at if steps else None,
        outcome=outcome,
        attempts=attempts,
        left=tuple(left),
        answers=sum(event["answers"] for event in _last_words(events)),
        wrong=wrong,
        surprises=tuple(surprises),
    )


def _last_words(events: Sequence[Event]) -> list[Event]:
    """The last report of each client process, since its counters start with it."""
    served = [event for event in events if event["event"] == "served"]
    return [
        event
        for event, following in zip_longest(served, served[1:])
        if following is None or following["step"] <= event["step"] or following["answers"] < event["answers"]
    ]


def _lost_steps(events: Sequence[Event]) -> list[str]:
    """Where training went back further than to the last checkpoint that was complete."""
    saved, problems = 0, []
    for event in events:
        if event["event"] == "checkpoint" and event["state"] == "end":
            saved = max(saved, int(event["step"]))
        if event["event"] == "resumed" and int(event["step"]) < saved:
            problems.append(f"resumed from step {event['step']}, though {saved} was saved")
        if event["event"] == "moment" and event["moment"] == Moment.STEP.value and int(event["step"]) <= saved:
            problems.append(f"step {event['step']} was done again, though it was saved")
    return problems


def _without_repeats(words: Sequence[str]) -> list[str]:
    return [word for index, word in enumerate(words) if index == 0 or word != words[index - 1]]

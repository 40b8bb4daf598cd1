"""Who of all that failed was first, and who only fell with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.events.failure_kinds import FailureKind
from launcher.observe.root_cause.candidate import Suspect

_STRENGTH = {FailureKind.UNKNOWN: 2, FailureKind.CONNECTION: 2, FailureKind.KILLED: 1, FailureKind.USER_CODE: 1}
"""How little a kind explains by itself; the others explain everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The cause, and what followed."""

    cause: Suspect
    victims: tuple[Suspect, ...]
    """In the order of time."""


def judge(suspects: Sequence[Suspect]) -> Judgement | None:
    """Finds the cause; None if nothing failed.

    A failure whose words blame somebody else is a cause only if there is no other: a rank that is killed says nothing,
    while its peers say ``Connection reset by peer`` at once. Of the rest the earliest counts. Two whose times cannot
    be told apart, because clocks and polls are only so exact, are ordered by how much they explain.
    """
    if not suspects:
        return None
    causes = [suspect for suspect in suspects if not suspect.is_symptom] or list(suspects)
    bound = min(_time(suspect) + suspect.error_s for suspect in causes)
    tied = [suspect for suspect in causes if _time(suspect) - suspect.error_s <= bound]
    cause = min(tied, key=lambda suspect: (not suspect.is_reported, _STRENGTH.get(suspect.kind, 0), _time(suspect)))
    victims = sorted((suspect for suspect in suspects if suspect is not cause), key=_time)
    return Judgement(cause=cause, victims=tuple(victims))


def _time(suspect: Suspect) -> float:
    return suspect.time if suspect.time is not None else float("inf")

"""The failures of one attempt, and which of them is the root cause: who failed first, and who only fell with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.events.failure_kinds import FailureKind

_VAGUENESS = {
    FailureKind.UNKNOWN: 2,
    FailureKind.CONNECTION: 2,
    FailureKind.KILLED: 1,
    FailureKind.USER_CODE: 1,
}
"""How little a kind explains by itself; the others explain everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureCandidate:
    """One process, or one node, that failed; times are by node 0's clock."""

    who: str
    """``trainer-0003``, ``inference-1``, ``node 2``, ``job``."""

    kind: FailureKind
    is_symptom: bool
    """It failed because something else did, by what its log says."""

    line: str
    is_reported: bool = True
    """Its agent reported it; else only its log shows it, and the time is not well known."""

    time: float | None = None
    """When it failed, as unix seconds; None if unknown."""

    error_s: float = 0.2
    """The time may be wrong by so much."""

    role: str | None = None
    rank: int | None = None
    node_rank: int | None = None
    hostname: str | None = None
    how: str | None = None
    """``exit code 1``, ``signal 9 (SIGKILL)``."""

    message: str | None = None
    """The agent's own sentence about it; None if only its log shows it."""

    lines: tuple[str, ...] = ()
    """The end of its traceback."""

    log: str | None = None

    @property
    def where(self) -> str:
        """``trainer 3 on node 1 (gpu-02)``, with what is known."""
        named = " ".join(str(x) for x in (self.role, self.rank) if x is not None)
        parts = [named or self.who]
        if self.node_rank is not None and named:
            parts.append(f"on node {self.node_rank}")
        if self.hostname is not None:
            parts.append(f"({self.hostname})")
        return " ".join(parts)

    @property
    def sentence(self) -> str:
        """What happened to whom, in one line."""
        if self.message:
            return self.message
        how = f" ended with {self.how}" if self.how else ""
        return f"{self.where}{how}: {self.line}"


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

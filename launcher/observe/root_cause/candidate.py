"""One process, or one node, that failed: as little as the judgement needs."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.events.failure_kinds import FailureKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A failure on the run's one timeline, which is node 0's clock."""

    who: str
    """``trainer-0003``, ``inference-1``, ``node 2``, ``job``."""

    kind: FailureKind
    is_symptom: bool
    """Its words tell of somebody else's failure."""

    line: str
    is_reported: bool = True
    """Its agent saw it fail; else only its log tells, and when that was is not well known."""

    time: float | None = None
    """When it failed, as unix seconds; None if nothing tells."""

    error_s: float = 0.2
    """The time may be wrong by so much."""

    role: str | None = None
    rank: int | None = None
    node_rank: int | None = None
    hostname: str | None = None
    how: str | None = None
    """``exit code 1``, ``signal 9 (SIGKILL)``."""

    message: str | None = None
    """The agent's own sentence about it; None if only its log tells."""

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

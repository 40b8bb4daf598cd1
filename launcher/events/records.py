"""The pieces of a run's state: phases, steps, checks, failures."""

from __future__ import annotations

import signal
from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Phase:
    """One stretch of one process's start-up; ``end`` is None while it lasts. Times are unix seconds."""

    name: str
    who: str
    begin: float
    end: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseGroup:
    """The same phase of all processes that have it."""

    name: str
    members: tuple[Phase, ...]
    done: int
    total: int

    @property
    def is_open(self) -> bool:
        """Whether a process is still in it."""
        return any(phase.end is None for phase in self.members)

    @property
    def waiting(self) -> list[str]:
        """Processes still in it."""
        return [phase.who for phase in self.members if phase.end is None]

    def elapsed(self, now: float) -> float:
        """Seconds from the first begin to the last end, or to ``now``."""
        return max(now if p.end is None else p.end for p in self.members) - min(p.begin for p in self.members)

    def longest_wait(self, now: float) -> float:
        """Seconds that the process waiting longest has been in it; 0 when none is."""
        return max((now - p.begin for p in self.members if p.end is None), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimizer step as the trainer reported it; what it left out is None."""

    step: int
    time: float
    version: int | None = None
    reward: float | None = None
    loss: float | None = None
    tokens_per_s: float | None = None
    sync_s: float | None = None
    mismatch: float | None = None
    """Mean |logp_trainer - logp_engine| over the sampled tokens."""
    mismatch_max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One statement the run tested about itself."""

    name: str
    ok: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One process that ended badly."""

    message: str
    time: float
    role: str | None = None
    node_rank: int | None = None
    rank: int | None = None
    hostname: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    log: str | None = None
    tail: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """``inference 1 on node 3 (gpu-07)``, with what is known."""
        parts = [" ".join(str(x) for x in (self.role, self.rank) if x is not None)]
        if self.node_rank is not None:
            parts.append(f"on node {self.node_rank}")
        if self.hostname is not None:
            parts.append(f"({self.hostname})")
        return " ".join(part for part in parts if part)

    @property
    def how(self) -> str:
        """``exit code 1`` or ``signal 9 (SIGKILL)``; empty when the process did not end."""
        if self.signal is not None:
            known = {int(s): s.name for s in signal.Signals}
            return f"signal {self.signal} ({known[self.signal]})" if self.signal in known else f"signal {self.signal}"
        return "" if self.exit_code is None else f"exit code {self.exit_code}"

"""The trainer ranks as one unit: they start together, end together, and are started again together."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from launcher.config.schema import RestartConfig
from launcher.control.policy import Restarts, is_from_outside

HOLD_S = 1.5
"""A rank that fails early may only be the first to notice another's end; the others get so long to report theirs."""


class Verdict(Enum):
    """What follows a trainer's failure."""

    RESTART = auto()
    FAIL = auto()
    WAIT = auto()
    """Other ranks may still tell the cause."""


@dataclass(slots=True, kw_only=True)
class Trainers:
    """All trainer ranks of a run."""

    restart: RestartConfig
    places: frozenset[int]
    world_size: int
    restarts: Restarts = field(init=False)
    incarnation: int = 0
    """Counts their starts, from 0; what an earlier incarnation still says is not listened to."""

    done: set[int] = field(default_factory=set)
    """Places whose ranks have all ended well."""

    started_at: float | None = None
    has_progressed: bool = False
    """Whether any incarnation has finished a step, or published a version."""

    step_at: float | None = None
    """When this incarnation finished its last step."""

    held: tuple[float, dict[str, Any]] | None = None
    """An early failure, and when it came."""

    def __post_init__(self) -> None:
        """Derives the counter from the policy."""
        self.restarts = Restarts(window_s=self.restart.count_window_s)

    @property
    def are_done(self) -> bool:
        """True once every rank of this incarnation has ended well."""
        return self.places <= self.done

    def progress(self, now: float, *, is_step: bool) -> None:
        """A step is finished, or a version published."""
        self.has_progressed = True
        if is_step:
            self.step_at = now

    def judge(self, failure: dict[str, Any], exit_code: int | None, now: float) -> Verdict:
        """What follows the end of one rank. An early failure of its own is held back, while others may explain it."""
        is_early = (
            not self.has_progressed
            and now - (now if self.started_at is None else self.started_at) < self.restart.startup_failure_window_s
        )
        if not is_early or is_from_outside(exit_code):
            return Verdict.RESTART
        if self.world_size == 1:
            return Verdict.FAIL
        if self.held is None:
            self.held = (now, failure)
        return Verdict.WAIT

    def allow_restart(self, now: float) -> bool:
        """Counts a restart, and makes it so; False at the limit."""
        if self.restarts.allow(now, self.restart.max_trainer_restarts) is None:
            return False
        self.incarnation += 1
        self.done.clear()
        self.started_at = self.step_at = self.held = None
        return True

    def is_hanging(self, now: float) -> bool:
        """Whether the last step is longer ago than a step may take."""
        limit = self.restart.step_timeout_s
        return limit is not None and self.step_at is not None and not self.done and now - self.step_at > limit

"""The wish that the run ends after a checkpoint, from the request until the trainer has ended; without any network."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class StopStage(IntEnum):
    """How far it has come. It only ever rises, and every agent hears of each rise."""

    NO = 0
    ASKED = 1
    """The trainer is to save a checkpoint and end."""

    SEEN = 2
    """The trainer knows, on all of its ranks: from here on the engines end, beside the checkpoint."""


@dataclass(slots=True, kw_only=True)
class Stopping:
    """What is known of the wish. Times are seconds of the clock that the caller uses."""

    stop_timeout_s: float = 60.0
    write_timeout_s: float = 300.0
    stage: StopStage = StopStage.NO
    reason: str = ""
    asked_at: float = 0.0
    writing_since: float | None = None
    """Since when a checkpoint is being written, whether or not the run is to stop; None while none is."""

    def ask(self, reason: str, now: float) -> bool:
        """The wish is there; False if it was before. The first reason stays."""
        if self.stage is not StopStage.NO:
            return False
        self.stage, self.reason, self.asked_at = StopStage.ASKED, reason, now
        return True

    def seen(self) -> None:
        """The trainer has taken notice."""
        if self.stage is StopStage.ASKED:
            self.stage = StopStage.SEEN

    def checkpoint(self, state: str, now: float) -> None:
        """A checkpoint ``begin``\\ s, or has come to its ``end`` or ``failed``."""
        self.writing_since = now if state == "begin" else None

    def is_writing(self, now: float) -> bool:
        """Whether a checkpoint is being written, and may still be waited for."""
        return self.writing_since is not None and now - self.writing_since <= self.write_timeout_s

    def is_overdue(self, now: float) -> bool:
        """Whether the trainer has had its time."""
        if self.stage is StopStage.NO or self.is_writing(now):
            return False
        return now - self.asked_at > self.stop_timeout_s

"""How a run ends: by a failure, by a wish to stop after a checkpoint, or at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from launcher.control.phase import ENDED, Phase
from launcher.control.stopping import StopStage
from launcher.events.schema import RunCancelled, StopRequested
from launcher.layout.model import Role

if TYPE_CHECKING:
    from launcher.control.state import JobState


class Ending:
    """Brings a run's state to one of the phases of :data:`ENDED`, except for a good end."""

    def __init__(self, state: JobState) -> None:
        self.failure: dict[str, Any] | None = None
        """What ended the run; None while nothing has."""

        self._state = state
        self._held: dict[str, Any] | None = None
        """A failure that ends the run as soon as the checkpoint that is being written is complete."""

    def fail(self, failure: dict[str, Any], now: float) -> None:
        """The first failure is the failure; what comes later is logged as a consequence.

        What is not the trainer's own end waits for a checkpoint that is just being written.
        """
        state = self._state
        first = state.phase not in ENDED and self._held is None
        state.emit("failure", **{**failure, "first": first})
        if not first:
            return
        self.failure = failure
        is_writing = state.phase is Phase.RUNNING and state.stopping.is_writing(now)
        if is_writing and failure.get("role") != Role.TRAINER:
            self._held = failure
        else:
            self._conclude()

    def stop(self, reason: str, now: float) -> None:
        """Somebody asked for a checkpoint and the end, or will end the run soon. Asked again, it changes nothing."""
        state = self._state
        if state.phase in ENDED or state.phase is Phase.DRAINING or not state.stopping.ask(reason, now):
            return
        state.emit(StopRequested(reason=reason))
        state.touch_all()
        if state.phase is not Phase.RUNNING or state.trainers.started_at is None:
            state.phase = Phase.STOPPED  # nothing runs that could save anything

    def cancel(self, reason: str) -> None:
        """Somebody asked for the end."""
        state = self._state
        if state.phase not in ENDED:
            self.failure = {"message": reason}
            state.emit(RunCancelled(message=reason))
            state.phase = Phase.CANCELLED

    def process_ended(self, role: str, failure: dict[str, Any], now: float) -> None:
        """A process ended while the run stops. Without its engines the trainer still reaches the next step's end, or
        fails; nothing is started again."""
        if role != Role.TRAINER:
            self._state.emit("failure", **{**failure, "first": False})
        else:
            self.fail(failure, now)

    def is_due(self, now: float) -> bool:
        """Ends the run if it has waited long enough for a checkpoint, or for a trainer that was to stop."""
        state, stopping = self._state, self._state.stopping
        if self._held is not None and not stopping.is_writing(now):
            self._conclude()
            return True
        if stopping.is_overdue(now):
            state.emit(StopRequested(reason=stopping.reason, overdue=True, after_s=now - stopping.asked_at))
            state.phase = Phase.STOPPED
            return True
        return False

    def _conclude(self) -> None:
        """Ends the run after a failure; if it was asked to stop anyway, the next attempt can make good for it."""
        is_stopping = self._state.stopping.stage is not StopStage.NO
        self._state.phase = Phase.STOPPED if is_stopping else Phase.FAILED

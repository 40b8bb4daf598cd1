"""What follows a death: which replica or rank starts again, who takes an empty place, and when the run is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from launcher.control.replicas import Life, ReplicaState
from launcher.control.trainers import Verdict
from launcher.control.values import INCARNATION, replica_key
from launcher.events.schema import ReplicaChanged, RestartScheduled, SpareAssigned

if TYPE_CHECKING:
    from launcher.control.state import JobState


class Recovery:
    """Carries out the policies on a run's state.

    Args:
        state: of the run.
        min_replicas: replicas without which training cannot go on.
    """

    def __init__(self, state: JobState, min_replicas: int) -> None:
        self._state = state
        self._min_replicas = min_replicas

    def engine_ended(self, life: Life, failure: dict[str, Any], exit_code: int | None, now: float) -> None:
        """A replica's process ended or hangs."""
        state, index = self._state, life.replica.index
        state.values.pop(replica_key(index, "ready"), None)
        is_restarting = state.replicas.failed(index, str(failure["message"]), now, exit_code=exit_code)
        state.touch(life.replica.node_ranks)
        if not is_restarting:
            self._after_drop(failure)

    def trainer_ended(self, failure: dict[str, Any], exit_code: int | None, now: float) -> None:
        """A trainer rank ended badly or hangs."""
        verdict = self._state.trainers.judge(failure, exit_code, now)
        if verdict is Verdict.RESTART:
            self.restart_trainers(failure, now)
        elif verdict is Verdict.FAIL:
            self._state.fail(failure)

    def store_ended(self, failure: dict[str, Any], now: float) -> None:
        """The trainers' store ended; node 0 starts another one, which nobody knows yet."""
        self.restart_trainers(failure, now)

    def restart_trainers(self, failure: dict[str, Any], now: float) -> None:
        """All ranks of all nodes start again, together; beyond the limit the run is over."""
        state, trainers = self._state, self._state.trainers
        if not trainers.allow_restart(now):
            state.fail(failure)
            return
        # Ranks would meet what those before them left in their store; torch counts on a new one for each start.
        state.values[INCARNATION] = trainers.incarnation
        state.emit(
            RestartScheduled(
                what="trainer",
                restart_count=trainers.restarts.count,
                max_restarts=trainers.restart.max_trainer_restarts,
                reason=str(failure["message"]),
                delay_s=0.0,
            )
        )
        state.touch(trainers.places)

    def refill(self, place: int, role: str, failure: dict[str, Any], now: float) -> None:
        """A place has lost its node: a spare takes it, or the run goes on without, or it is over."""
        state, reason = self._state, str(failure["message"])
        affected = [life for life in state.replicas.on_place(place) if life.state is not ReplicaState.DROPPED]
        for life in affected:
            state.values.pop(replica_key(life.replica.index, "ready"), None)
            state.emit(ReplicaChanged(replica=life.replica.index, state="lost", reason=reason))
        node = state.members.fill(place)
        if node is not None:
            hostname = state.members.hostnames[node]
            state.emit(SpareAssigned(node_rank=node, hostname=hostname, slot=place, role=role))
            state.touch([place])
            for life in affected:
                state.replicas.move(life.replica.index, now)
                state.touch(life.replica.node_ranks)
            if place in state.trainers.places and state.trainers.started_at is not None:
                self.restart_trainers(failure, now)
        elif place in state.trainers.places:
            # Nothing is wrong with the run: another allocation will do.
            state.fail({**failure, "requeue": True})
        else:
            for life in affected:
                state.replicas.drop(life.replica.index, reason)
                state.touch(life.replica.node_ranks)
            self._after_drop({**failure, "requeue": True})

    def _after_drop(self, failure: dict[str, Any]) -> None:
        if self._state.replicas.left < self._min_replicas:
            self._state.fail(failure)
        else:
            self._state.gather_urls()

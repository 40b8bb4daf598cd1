"""The lives of the replicas: which generation of each runs, which may be asked, and when one is started again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from launcher.config.schema import RestartConfig
from launcher.control.policy import REFUSED, Restarts
from launcher.events.schema import Event, ReplicaChanged, RestartScheduled
from launcher.layout.model import Replica

Version = tuple[int, int]
"""Incarnation of the trainers and number of the version; versions are ordered by both."""


class ReplicaState(StrEnum):
    """What a replica is doing."""

    STARTING = "starting"
    """Its processes run, or are about to; it has not answered yet."""

    READY = "ready"
    RESTARTING = "restarting"
    """Its processes are ended; they start again after a pause."""

    DROPPED = "dropped"
    """It does not come back."""


@dataclass(slots=True, kw_only=True)
class Life:
    """One replica's life so far."""

    replica: Replica
    restarts: Restarts
    state: ReplicaState = ReplicaState.STARTING
    generation: int = 0
    """Counts its starts, from 0; what an earlier generation still says is not listened to."""

    starts_at: float = 0.0
    url: str | None = None
    master: str | None = None
    """Rendezvous of a replica that spans nodes."""

    version: Version | None = None
    """The weights that it serves; None for those that it was started with."""

    @property
    def runs(self) -> bool:
        """Whether its processes should be there."""
        return self.state in (ReplicaState.STARTING, ReplicaState.READY)


class Replicas:
    """All replicas of a run.

    Args:
        restart: how often and how soon.
        emit: called with each event.
    """

    def __init__(self, replicas: Sequence[Replica], restart: RestartConfig, emit: Callable[[Event], None]) -> None:
        self._restart = restart
        self._emit = emit
        self.lives = [
            Life(
                replica=replica,
                restarts=Restarts(
                    window_s=restart.count_window_s,
                    backoff_s=restart.engine_backoff_s,
                    longest_s=restart.max_engine_backoff_s,
                ),
            )
            for replica in replicas
        ]
        self.version: Version | None = None
        """The last version that was published."""

        self.changes = 0
        """Rises with everything that :meth:`pool` shows."""

        self._was_any_ready = False

    def on_place(self, place: int) -> list[Life]:
        """Replicas that have a part on a place."""
        return [life for life in self.lives if place in life.replica.node_ranks]

    @property
    def left(self) -> int:
        """Replicas that serve, or will."""
        return sum(life.state is not ReplicaState.DROPPED for life in self.lives)

    def ready(self, index: int, generation: int, url: str) -> bool:
        """An engine is healthy; False if that is no news, because of an older generation."""
        life = self.lives[index]
        if generation != life.generation or life.state is not ReplicaState.STARTING:
            return False
        life.state, life.url = ReplicaState.READY, url
        self.changes += 1
        self._was_any_ready = True
        if generation and self.serves(life):
            self._emit(ReplicaChanged(replica=index, state="ready", url=url))
        return True

    def failed(self, index: int, reason: str, now: float, *, exit_code: int | None = None) -> bool:
        """A replica's process ended or hangs: all of it is to end, and to start again if the policy allows.

        Returns:
            Whether it starts again; otherwise it is dropped.
        """
        life = self.lives[index]
        limit = self._restart.max_engine_restarts if self._was_any_ready else min(1, self._restart.max_engine_restarts)
        pause = None if exit_code == REFUSED and not self._was_any_ready else life.restarts.allow(now, limit)
        if pause is None:
            self.drop(index, reason)
            return False
        self._end(life, ReplicaState.RESTARTING)
        life.starts_at = now + pause
        self._emit(ReplicaChanged(replica=index, state="restarting", reason=reason))
        self._emit(
            RestartScheduled(
                what="engine",
                replica=index,
                restart_count=life.restarts.count,
                max_restarts=limit,
                reason=reason,
                delay_s=pause,
            )
        )
        return True

    def move(self, index: int, now: float) -> None:
        """Another node has taken a place of the replica's: it starts there, at once and without being counted."""
        life = self.lives[index]
        if life.state is not ReplicaState.DROPPED:
            self._end(life, ReplicaState.RESTARTING)
            life.starts_at = now

    def drop(self, index: int, reason: str) -> None:
        """A replica is left out for the rest of the attempt."""
        life = self.lives[index]
        if life.state is not ReplicaState.DROPPED:
            self._end(life, ReplicaState.DROPPED)
            self._emit(ReplicaChanged(replica=index, state="dropped", reason=reason))

    def start_due(self, now: float) -> list[Life]:
        """Starts what has waited long enough."""
        due = [life for life in self.lives if life.state is ReplicaState.RESTARTING and now >= life.starts_at]
        for life in due:
            life.state = ReplicaState.STARTING
            self.changes += 1
        return due

    def published(self, version: Version, indices: Collection[int], generations: Collection[int]) -> bool:
        """The trainer says which replicas serve a version; False if an older incarnation of it speaks."""
        if self.version is not None and version < self.version:
            return False
        self.version = version
        self.changes += 1
        for index, generation in zip(indices, generations, strict=True):
            life = self.lives[index]
            if life.generation != generation or life.state is not ReplicaState.READY:
                continue
            is_back = life.generation > 0 and life.version is None
            life.version = version
            if is_back:
                self._emit(ReplicaChanged(replica=index, state="ready", url=life.url, version=version[1]))
        return True

    def serves(self, life: Life) -> bool:
        """Whether a replica may be asked: it is healthy, and no other has newer weights."""
        return life.state is ReplicaState.READY and life.version == self.version

    def pool(self) -> list[dict[str, Any]]:
        """Every replica that is not dropped, as the trainer sees it."""
        return [
            {
                "replica": life.replica.index,
                "generation": life.generation,
                "state": life.state.value,
                "url": life.url,
                "serves": self.serves(life),
            }
            for life in self.lives
            if life.state is not ReplicaState.DROPPED
        ]

    def _end(self, life: Life, state: ReplicaState) -> None:
        life.state = state
        self.changes += 1
        life.generation += 1
        life.url = life.master = life.version = None

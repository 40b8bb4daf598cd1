"""Which replicas there are: a fixed list of URLs, or whatever runs the engines and injects its own discovery."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from launcher.common.jsonio import append_line


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaInfo:
    """One start of one replica; a value that the trainer's ranks share."""

    index: int
    restart_count: int = 0
    """How often the replica was restarted; 0 for its first start."""

    url: str | None
    """Base URL, ``http://host:port``; None while it is not known yet."""

    is_ready: bool = True
    """Whether it answers; one that does not may still come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """A version that enough replicas serve."""

    version: int
    adapter: str | None
    """Name of the adapter; None for the model's weights."""

    replicas: Mapping[int, int]
    """Restart count of each replica that serves the version, by its index."""

    seconds: float
    bytes: int
    density: float | None
    """As in :class:`launcher.bridge.UpdateReport`."""

    @property
    def event(self) -> str:
        """Name of the event that records it."""
        return "published" if self.adapter is None else "adapter_published"

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the event that records it; JSON."""
        named = {} if self.adapter is None else {"adapter": self.adapter}
        return {**named, "version": self.version, "replicas": sorted(self.replicas), **self.measured}

    @property
    def measured(self) -> dict[str, Any]:
        """What the update took."""
        return {"seconds": self.seconds, "bytes": self.bytes, "density": self.density}


class ReplicaDiscovery(Protocol):
    """The replicas, as whatever runs them knows them. Rank 0 of the trainer calls it, and every rank
    :meth:`failure_reason`, from several threads.

    Every method but :meth:`failure_reason` may raise a :class:`~launcher.common.errors.LauncherError`, which ends the
    update.
    """

    @property
    def is_dynamic(self) -> bool:
        """Whether replicas may come, go and be restarted. If not, :meth:`replicas` is always the same."""

    def announce(self) -> None:
        """A trainer will publish weights: a replica that is restarted from now on must wait for them."""

    def replicas(self) -> Sequence[ReplicaInfo]:
        """All replicas that are ready, or may become so, in the order of their indexes."""

    def wait(self, is_enough: Callable[[Sequence[ReplicaInfo]], bool], timeout_s: float) -> bool:
        """Waits until the replicas satisfy a condition; False if they do not after ``timeout_s``."""

    def failure_reason(self, replica: ReplicaInfo) -> str | None:
        """Why a replica that a request was sent to will not answer any more; None if it may. Called every 2 s while a
        request takes long.
        """

    def record(self, commit: CommitRecord) -> None:
        """Records a version that enough replicas serve. :meth:`Bridge.publish` returns after it."""

    def close(self) -> None:
        """Ends connections. A later call opens them again."""


class FixedReplicas:
    """Replicas at URLs that never change.

    Args:
        urls: of the replicas, by index.
        journal: each commit is added to this file as one line of JSON; None for no journal.
    """

    is_dynamic = False

    def __init__(self, urls: Sequence[str], journal: Path | None = None) -> None:
        self._replicas = [ReplicaInfo(index=index, url=url) for index, url in enumerate(urls)]
        self._journal = journal

    def announce(self) -> None:
        """Nothing: nobody restarts these replicas."""

    def replicas(self) -> Sequence[ReplicaInfo]:
        """One for each URL."""
        return self._replicas

    def wait(self, is_enough: Callable[[Sequence[ReplicaInfo]], bool], timeout_s: float) -> bool:
        """Does not wait: nothing changes."""
        return is_enough(self._replicas)

    def failure_reason(self, replica: ReplicaInfo) -> str | None:
        """None: only a request's deadline shows that a replica is lost."""
        return None

    def record(self, commit: CommitRecord) -> None:
        """Adds a line to the journal."""
        if self._journal is not None:
            append_line(self._journal, {"time": time.time(), "event": commit.event, **commit.fields})

    def close(self) -> None:
        """Nothing is open."""

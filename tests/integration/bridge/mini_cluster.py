"""Trainer ranks and replicas of one small run, each a process that a test can stop and kill."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from torch import distributed as dist

from tests.integration.bridge.peer_process import Answer, PeerProcess

TOKEN = "a token of the tests"
GROUPS = itertools.count()


@dataclass(kw_only=True)
class MiniCluster:
    """One trainer, of one or more ranks, and its replicas."""

    nodes: Sequence[int] = (1, 2)
    """Of each replica; the trainer is on node 0."""

    workers: int = 1
    ranks: int = 1
    tensors: int = 8
    rows: int = 64
    columns: int = 32
    settings: dict[str, Any] = field(default_factory=dict)
    replicas: list[PeerProcess] = field(default_factory=list)
    trainers: list[PeerProcess] = field(default_factory=list)
    _ports: list[int] = field(default_factory=list)

    def __enter__(self) -> MiniCluster:
        self._store = dist.TCPStore(
            "127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=60), wait_for_workers=False
        )
        self._ports = [0] * len(self.nodes)
        self.replicas = [self._replica(index) for index in range(len(self.nodes))]
        self.start_trainer()
        return self

    def __exit__(self, *_: object) -> None:
        for end in (*self.trainers, *self.replicas):
            end.end()

    @property
    def shapes(self) -> dict[str, Any]:
        """Of the tensors."""
        names = [f"matrix.{i:03}".replace(".", "_") for i in range(self.tensors)]
        return {"names": names, "rows": self.rows, "columns": self.columns}

    def start_trainer(self, **changed: Any) -> None:
        """Ends the trainer if there is one; starts another."""
        for end in self.trainers:
            end.end()
        urls = [f"http://127.0.0.1:{port}" for port in self._ports]
        settings = {"urls": urls, "token": TOKEN, "timeout_s": 90.0, "min_replicas": 1, **self.settings, **changed}
        self.trainers = [PeerProcess("tests.integration.bridge.trainer_process") for _ in range(self.ranks)]
        group = f"trainers-{next(GROUPS)}"
        for rank, end in enumerate(self.trainers):
            words = {"rank": rank, "world_size": self.ranks, "store": self._store.port, "group": group}
            end.send_command("connect", settings=settings, **words, **self.shapes)
        assert [end.next_answer() for end in self.trainers] == [{}] * self.ranks

    def restart(self, index: int) -> None:
        """A replica ends, if it has not yet, and another one starts at its address, with no weights."""
        self.replicas[index].end()
        self.replicas[index] = self._replica(index)

    def publish(self, version: int) -> Answer:
        """Publishes a version; what rank 0 says of it."""
        for end in self.trainers:
            end.send_command("publish", version=version)
        answers = [end.next_answer() for end in self.trainers]
        return answers[0]

    def values(self) -> list[list[float] | None]:
        """The distinct values of each replica's live weights; None of one that has ended or does not run."""
        return [end.call("values")["values"] if end.is_sound else None for end in self.replicas]

    def close(self) -> None:
        """The trainer says goodbye."""
        for end in self.trainers:
            end.send_command("close")
        assert [end.next_answer() for end in self.trainers] == [{}] * self.ranks

    def _replica(self, index: int) -> PeerProcess:
        end = PeerProcess("tests.integration.bridge.replica_process")
        words = {"token": TOKEN, "node": self.nodes[index], "workers": self.workers, "port": self._ports[index]}
        self._ports[index] = end.call("serve", **words, **self.shapes)["port"]
        return end


def fault(end: PeerProcess, at: str, number: signal.Signals, count: int = 0) -> None:
    """From now on this happens to a process."""
    assert end.call("set_fault", at=at, number=int(number), count=count) == {}
    end.expects_signal()

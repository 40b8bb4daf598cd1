"""The processes at both ends of a transfer, as a test holds them."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from torch import distributed as dist

from tests.integration.bridge import fork_server
from tests.integration.bridge.transfer_case import TransferCase

PATIENCE_S = 240.0
"""Longest wait for a line that must come; a busy machine takes its time to import torch."""

Answer = dict[str, Any]


class PeerProcess:
    """A process of ``transfer_process``, or of another module with the same protocol."""

    def __init__(self, module: str = "tests.integration.bridge.transfer_process") -> None:
        self.process = fork_server.start(module)
        self._to, self._from = self.process.socket.makefile("w"), self.process.socket.makefile("r")
        self._lines: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._started = False
        self._owed = 0
        self._signalled = False

    def send_command(self, do: str, **command: Any) -> None:
        """Sends one command; does not wait for its answer."""
        if not self._started:
            assert self.next_answer() == {"ready": True}
            self._started = True
        self._owed += 1
        self._to.write(json.dumps({"do": do, **command}) + "\n")
        self._to.flush()

    def next_answer(self, timeout_s: float = PATIENCE_S) -> Answer:
        """Its next answer; empty if it has ended.

        Raises:
            AssertionError: none has come.
        """
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise AssertionError(f"process {self.process.pid} sent no answer for {timeout_s:g} s") from None
        if not line.keys() & {"held", "ready"}:
            self._owed -= 1
        return line

    def call(self, do: str, **command: Any) -> Answer:
        """Sends one command and returns its answer."""
        self.send_command(do, **command)
        return self.next_answer()

    def call_out_of_order(self, do: str, **command: Any) -> Answer:
        """Sends one command and returns its answer; skips answers that were still due before it."""
        self.send_command(do, **command)
        while (line := self.next_answer()).keys() & {"held", "ready"}:
            pass
        return line

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self._signalled = True
        self.process.send_signal(number)

    def expects_signal(self) -> None:
        """It will be sent one by another, or by itself."""
        self._signalled = True

    @property
    def lives(self) -> bool:
        """Whether it has not ended."""
        return self.process.lives

    @property
    def is_sound(self) -> bool:
        """Whether it can serve another test: it lives, runs, and owes no answer."""
        return self.lives and not self._signalled and self._owed == 0

    def end(self) -> None:
        """Kills it, stopped or not."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self._from.close()
        with contextlib.suppress(BrokenPipeError):  # It has not read the last command.
            self._to.close()
        self.process.close()

    def _read(self) -> None:
        try:
            for line in self._from:
                self._lines.put(json.loads(line))
        except ConnectionResetError:
            pass  # It was killed before it had read all commands.
        self._lines.put({})


def call_all(ends: Sequence[PeerProcess], do: str, **command: Any) -> list[Answer]:
    """The same command to several, at once; their answers."""
    for end in ends:
        end.send_command(do, **command)
    return [end.next_answer() for end in ends]


@dataclass(kw_only=True)
class Replica:
    """A group that has been joined: trainer ranks and the workers of one replica."""

    case: TransferCase
    group: str
    senders: list[PeerProcess]
    workers: list[PeerProcess]

    def prepare(self, version: int, only: Sequence[str] | None = None, base: int | None = None) -> list[Answer]:
        """Asks every worker to receive a version, or what has changed since another."""
        return call_all(self.workers, "prepare", group=self.group, version=version, only=only, base=base)

    def start_send(self, version: int, *, timeout_s: float = 30.0, **command: Any) -> None:
        """Has every trainer rank send a version."""
        for sender in self.senders:
            sender.send_command("send", group=self.group, version=version, timeout_s=timeout_s, **command)

    def send(self, version: int, *, timeout_s: float = 30.0, **command: Any) -> list[Answer]:
        """Has every trainer rank send a version; what each says of it."""
        self.start_send(version, timeout_s=timeout_s, **command)
        return [sender.next_answer() for sender in self.senders]

    def statuses(self, timeout_s: float = 30.0) -> list[Answer]:
        """What the workers say once they no longer receive."""
        return call_all(self.workers, "wait", group=self.group, timeout_s=timeout_s)

    def commit(self, version: int) -> list[Answer]:
        """Has every worker write what has arrived."""
        return call_all(self.workers, "commit", group=self.group, version=version)

    def contents(self) -> list[Answer]:
        """Digests of each worker's live tensors."""
        return call_all(self.workers, "contents", group=self.group)

    def publish(
        self, version: int, only: Sequence[str] | None = None, *, base: int | None = None, density: float | None = None
    ) -> tuple[list[Answer], list[Answer]]:
        """A whole update without faults: what the senders and what the workers say; committed."""
        assert self.prepare(version, only, base) == [{}] * len(self.workers)
        sent, received = self.send(version, only=only, base=base, density=density), self.statuses()
        assert [status["state"] for status in received] == ["received"] * len(self.workers), received
        assert self.commit(version) == [{}] * len(self.workers)
        if density is not None:
            call_all(self.senders, "advance", group=self.group, version=version, only=only)
        return sent, received

    def close(self) -> list[Answer]:
        """Everybody who lives leaves the group."""
        return call_all([end for end in (*self.senders, *self.workers) if end.lives], "close", group=self.group)


@dataclass(kw_only=True)
class Pool:
    """Processes that are ends of one transfer after the other; one that has been killed is replaced when needed."""

    transport: str = "gloo"
    devices: tuple[str, ...] = ("cpu",)
    """Of the ends in turn."""

    ends: list[PeerProcess] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.store = dist.TCPStore(
            "127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=30), wait_for_workers=False
        )

    def take(self, count: int, besides: Sequence[PeerProcess] = ()) -> list[PeerProcess]:
        """So many processes that live and are none of ``besides``."""
        free = [end for end in self.ends if end.is_sound and end not in besides]
        while len(free) < count:
            free.append(PeerProcess())
            self.ends.append(free[-1])
        return free[:count]

    def join(
        self,
        case: TransferCase,
        *,
        senders: Sequence[PeerProcess] | None = None,
        besides: Sequence[PeerProcess] = (),
        timeout_s: float = 30.0,
        directory: str | None = None,
        **worker: Any,
    ) -> Replica:
        """A new group.

        Args:
            case: what will be sent.
            senders: the trainer ranks; any processes if None.
            besides: processes that shall not be workers.
            timeout_s: deadline of joining, and of each version at the workers.
            directory: that all share.
            worker: further words to the workers.
        """
        found = list(senders) if senders is not None else self.take(case.trainers, besides)
        workers = self.take(case.workers, [*besides, *found])
        replica = Replica(case=case, group=f"group-{next(self._numbers)}", senders=found, workers=workers)
        words = {
            "case": case.to_json(),
            "group": replica.group,
            "store": f"127.0.0.1:{self.store.port}",
            "transport": self.transport,
            "timeout_s": timeout_s,
            "directory": directory,
        }
        # New processes are still importing torch, which belongs to no deadline.
        call_all([*found, *workers], "compute", device="cpu")
        # A process has one GPU: the trainer's ranks the first, the workers the next.
        for rank, end in enumerate(found):
            end.send_command("join", role="sender", rank=rank, device=self.devices[0], **words)
        for rank, end in enumerate(workers):
            end.send_command("join", role="receiver", rank=rank, device=self.devices[-1], **words, **worker)
        for end in (*found, *workers):
            assert end.next_answer() == {"joined": replica.group}
        return replica

    def settle(self) -> None:
        """Ends the processes that a test has left in no state to serve another."""
        for end in [end for end in self.ends if not end.is_sound]:
            end.end()
            self.ends.remove(end)

    def end(self) -> None:
        """Ends every process."""
        for end in self.ends:
            end.end()
        self.ends.clear()

"""One trainer rank's end of the data plane: its messages of one version to one replica."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch

from launcher.bridge.codec.delta import HEAD_BYTES
from launcher.bridge.codec.delta_encode import Scratch, encode
from launcher.bridge.codec.local import LocalTensor
from launcher.bridge.codec.messages import Messages, SideStream
from launcher.bridge.negotiation import restricted
from launcher.bridge.plan import Message, Plan
from launcher.bridge.transport.base import DirectSendWire, RegionSendWire, SendWire, Transfer
from launcher.bridge.transport.regions import Splits, all_regions, sent_from, sent_regions, sizes_of, split_large
from launcher.common.errors import TransferError

IN_FLIGHT = 4
"""Messages that wait for their receivers at a time; bounds the sender's memory to as many packed messages."""


Piece = tuple[int, Callable[[float], Transfer]]
"""One thing that goes over a wire: how many bytes, and what posts it, given the deadline."""


class ReplicaSender:
    """Sends versions to one replica.

    Args:
        plan: the agreed plan of this replica.
        rank: this trainer rank.
        wires: to every worker that it sends anything, by rank of the worker.
        verify: also compute the digest of what is sent.
    """

    def __init__(self, *, plan: Plan, rank: int, wires: Mapping[int, SendWire], verify: bool) -> None:
        self.plan = plan
        self._outgoing = list(plan.outgoing(rank))
        # Changes are few: they go as messages of their rounds.
        self._split = list(
            split_large(self._outgoing, lambda message: isinstance(wires[message.receiver.rank], DirectSendWire))
        )
        self._wires = wires
        self._verify = verify
        self._scratch = Scratch()
        by_regions = {worker: wire for worker, wire in wires.items() if isinstance(wire, RegionSendWire)}
        self._splits = Splits(plan, [message for message in self._split if message.receiver.rank in by_regions])
        self._messages = Messages(plan, [*self._split, *self._splits.packed, *self._outgoing])
        self._checking = SideStream(next((w.device for w in by_regions.values()), torch.device("cpu")))
        self.workers = len(plan.engines[0].locations)
        self.committed: int | None = None
        """The version that the replica has committed since it was joined; the caller says so."""

    def send(
        self,
        shards: Mapping[str, LocalTensor],
        only: frozenset[str] | None,
        deadline: float,
        base: Mapping[str, LocalTensor] | None = None,
    ) -> Sent:
        """Sends this rank's messages.

        Args:
            shards: what this rank holds, by name.
            only: these tensors; None for all.
            deadline: ``time.monotonic()`` by which the last one must have gone.
            base: what this rank held of the version that the replica has: only what has changed since is sent.

        Raises:
            TransferError: one did not go in time.
        """
        sent = Sent(self.workers)
        waiting: deque[tuple[Message, Transfer]] = deque()
        for message in self._split if base is None else self._outgoing:
            part = restricted(message, only)
            if part is None:
                continue
            worker = part.receiver.rank
            with torch.no_grad():
                for nbytes, post in self._sends(part, shards, base, sent):
                    while len(waiting) >= IN_FLIGHT:
                        _finish(*waiting.popleft(), deadline)
                    with _told(part):
                        waiting.append((part, post(deadline)))
                    sent.bytes += nbytes
                if self._verify:
                    # While the message is on its way.
                    with self._checking.work():
                        sent.add_digest(worker, self._messages.digest_sent(part, shards, is_background=True))
        while waiting:
            _finish(*waiting.popleft(), deadline)
        self._checking.synchronize()
        return sent

    def _sends(
        self,
        message: Message,
        shards: Mapping[str, LocalTensor],
        base: Mapping[str, LocalTensor] | None,
        sent: Sent,
    ) -> list[Piece]:
        wire = self._wires[message.receiver.rank]
        if base is None:
            if isinstance(wire, RegionSendWire):
                return [(message.nbytes, partial(self._post_regions, wire, message, shards))]
            if isinstance(wire, DirectSendWire):
                content = sent_from(message, shards)
                if content is not None:
                    return [(message.nbytes, partial(_post_from, wire, content))]
            return [
                (message.nbytes, partial(_post, wire, message.nbytes, partial(self._messages.pack, message, shards)))
            ]
        changes = encode(self._messages, message, shards, base, self._scratch)
        sent.compared += changes.compared
        sent.changed += changes.changed
        head: Piece = (HEAD_BYTES, partial(_post, wire, HEAD_BYTES, changes.head.write))
        if not changes.head.nbytes:
            return [head]
        return [head, (changes.head.nbytes, partial(_post, wire, changes.head.nbytes, changes.write))]

    def _post_regions(
        self, wire: RegionSendWire, message: Message, shards: Mapping[str, LocalTensor], deadline: float
    ) -> Transfer:
        split = self._splits.of(message)
        found = sent_regions(message, split, shards, wire)
        buffer = None
        if found.packed is not None:
            buffer = wire.buffer(found.packed.nbytes, deadline)
            self._messages.pack(found.packed, shards, buffer)
        return wire.post_send_regions(all_regions(found, sizes_of(split), buffer), found.keep)

    def close(self) -> None:
        """Leaves the wires."""
        for wire in self._wires.values():
            wire.abort()


class RelayedSender(ReplicaSender):
    """Of a replica to which another one relays: the trainer's ranks send it nothing.

    Args:
        plan: the agreed plan of both replicas.
        parent: index of the one that relays.
    """

    def __init__(self, *, plan: Plan, parent: int) -> None:
        super().__init__(plan=plan, rank=-1, wires={}, verify=False)
        self.parent = parent


class Sent:
    """What one rank sent to one replica: bytes, and a digest for each worker."""

    def __init__(self, workers: int) -> None:
        self.bytes = 0
        self.compared = self.changed = 0
        """Words that were compared with those of the version before, and that had changed."""

        self._digests: list[torch.Tensor | int] = [0] * workers

    def add_digest(self, worker: int, value: torch.Tensor) -> None:
        """Adds one message's sum to its receiver's, modulo 2 ** 64."""
        self._digests[worker] = self._digests[worker] + value

    def digests(self) -> torch.Tensor:
        """int64, one for each worker."""
        return torch.stack([torch.as_tensor(value, dtype=torch.int64).cpu() for value in self._digests])


def largest_messages(plan: Plan, rank: int) -> dict[int, int]:
    """Bytes of the largest message of a trainer rank to each worker that it sends anything."""
    largest: dict[int, int] = {}
    for message in plan.outgoing(rank):
        largest[message.receiver.rank] = max(message.nbytes, HEAD_BYTES, largest.get(message.receiver.rank, 0))
    return largest


def _post(wire: SendWire, nbytes: int, fill: Callable[[torch.Tensor], None], deadline: float) -> Transfer:
    buffer = wire.buffer(nbytes, deadline)
    fill(buffer)
    return wire.post_send(buffer)


def _post_from(wire: DirectSendWire, content: torch.Tensor, _deadline: float) -> Transfer:
    return wire.post_send_from(content)


def _finish(message: Message, transfer: Transfer, deadline: float) -> None:
    with _told(message):
        transfer.poll(deadline)


@contextmanager
def _told(message: Message) -> Iterator[None]:
    try:
        yield
    except TransferError as error:
        raise TransferError(f"sending round {message.round} to worker {message.receiver.rank} {error}") from error

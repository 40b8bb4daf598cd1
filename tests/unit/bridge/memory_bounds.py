"""The most memory that an update takes besides the weights, on either side: a bound from the plan alone.

A worker's bound is its shadow, which :attr:`launcher.bridge.weightmap.write.Writer.extra_bytes` tells, and what
:func:`receiver_bytes` says. The modes differ in the shadow only: ``shadow`` has as many bytes as the parameters that
the trainer fills, on their device; ``host_shadow`` as many in host memory; ``inplace`` has none, but for parameters
that the engine's own loader or packing must write.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from launcher.bridge.codec.delta import words
from launcher.bridge.codec.delta_encode import WHOLE_ABOVE
from launcher.bridge.plan import Message, Plan, Receiver
from launcher.bridge.plan.dtypes import ITEMSIZE
from launcher.bridge.transport.shm import slot_size

WORKING_BYTES = 4 << 20
"""What the digest widens at a time, with the weights of rows and columns that it keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """Messages that lie in memory at a time on one wire."""

    sender: int
    receiver: int


STAGED = {
    # A ring's slots are one memory, which both ends see. With `peer` the receiver has slots of its own besides.
    "shm": Staged(sender=4, receiver=4),
    "ipc": Staged(sender=4, receiver=4),
    "peer": Staged(sender=4, receiver=4),
    "nccl": Staged(sender=4, receiver=2),
    "gloo": Staged(sender=4, receiver=2),
    "filesystem": Staged(sender=4, receiver=1),
}


def sender_bytes(plan: Plan, rank: int, transports: Mapping[int, str]) -> int:
    """Bound of what a trainer rank takes to send versions to one replica.

    Args:
        plan: of the replica.
        rank: the trainer rank.
        transports: of its wires, by worker.
    """
    largest = _largest((message.receiver.rank, message) for message in plan.outgoing(rank))
    wires = sum(STAGED[transports[worker]].sender * slot_size(nbytes) for worker, nbytes in largest.items())
    return wires + _one_more(largest)


def changes_bytes(plan: Plan, rank: int) -> tuple[int, int]:
    """Bound of what ``bridge.update=delta`` takes besides: by a trainer rank at all times, and while it sends.

    The first is the version that was committed last, in the types in which it travels (for tensors that travel in
    several, in the trainer's own); the second, for each replica, the same message of two versions, a byte for each of
    its words, and eight for each that has changed, of which there are few or the message goes whole.
    """
    wires = {t.region.source: ITEMSIZE[t.wire] for transfers in plan.transfers.values() for t in transfers}
    held = sum(
        shard.box.volume * wires.get(name, ITEMSIZE[source.dtype])
        for name, source in plan.sources.items()
        for shard in source.shards
        if rank in shard.ranks
    )
    most = 0
    for message in plan.outgoing(rank):
        changed = max(WHOLE_ABOVE.values()) * words(message)
        most = max(most, 2 * message.nbytes + words(message) + int(8 * changed))
    return held, most


def receiver_bytes(plan: Plan, rank: int, transports: Mapping[int, str]) -> int:
    """Bound of what a worker takes to receive versions, besides its shadow.

    Args:
        plan: of the replica.
        rank: the worker's rank in it.
        transports: of its wires, by trainer rank.
    """
    incoming = plan.incoming(Receiver(engine=0, rank=rank))
    largest = _largest((message.sender, message) for message in incoming)
    wires = sum(STAGED[transports[sender]].receiver * slot_size(nbytes) for sender, nbytes in largest.items())
    return wires + _one_more(largest)


def _largest(messages: Iterable[tuple[int, Message]]) -> dict[int, int]:
    largest: dict[int, int] = {}
    for peer, message in messages:
        largest[peer] = max(message.nbytes, largest.get(peer, 0))
    return largest


def _one_more(largest: Mapping[int, int]) -> int:
    # A piece that is cast, or does not lie in one stretch, is copied for the digest; none is larger than its message.
    return max(largest.values(), default=0) + WORKING_BYTES

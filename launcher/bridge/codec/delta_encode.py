"""The sender of changes: what a rank keeps of the committed version, and a message as its changes since then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from launcher.bridge.codec.delta import (
    MOST_WORDS,
    WORD,
    Encoding,
    Head,
    body_bytes,
    count_of,
    differing,
    mask_of,
    places_of,
    values_at,
    word_bytes,
    words,
)
from launcher.bridge.codec.local import LocalTensor, value_of
from launcher.bridge.codec.messages import Messages
from launcher.bridge.plan import Message, Plan
from launcher.bridge.plan.split import aligned

WHOLE_ABOVE = {"cpu": 1 / 32, "cuda": 0.25}
"""By where the shards lie: the share of changed words above which a message goes whole, though its changes may be fewer
bytes. Once compared, positions cost less than whole messages even if the wire cost nothing. They end at 1/32, where
masks are shorter. Those take a CPU so long to unpack that they pay only below 0.7 GB/s (measured, 10 % changed: 12 ms
for 8 MiB of which 16 % travel, instead of 1.4 ms), which TCP between two processes exceeds; a GPU hardly notices them.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """One message, encoded; good until the scratch memory is used again."""

    head: Head
    message: Message
    new: torch.Tensor
    """The whole message: uint8, shape (nbytes,)."""

    changed: int
    """Words that differ."""

    positions: torch.Tensor
    """int64, rising: where they are; empty if the message goes whole."""

    @property
    def compared(self) -> int:
        """Words that were compared, without those between segments."""
        return sum(segment.nbytes for segment in self.message.segments) // word_bytes(self.message)

    def write(self, body: torch.Tensor) -> None:
        """Fills the body: uint8, shape (head.nbytes,)."""
        encoding, count = self.head.encoding, self.changed
        if encoding is Encoding.WHOLE:
            body.copy_(self.new)
            return
        start = values_at(self.message, encoding, count)
        if encoding is Encoding.INDEX:
            body[: 4 * count].view(torch.int32).copy_(self.positions)
        else:
            mask = mask_of(self.positions, words(self.message))
            body[: mask.numel()].copy_(mask)
        word = WORD[word_bytes(self.message)]
        body[start:].view(word).copy_(self.new.view(word).index_select(0, self.positions))


class Scratch:
    """Two messages' memory, used for one after the other; for one thread."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def take(self, nbytes: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Twice uint8, shape (nbytes,)."""
        if self._memory.numel() < 2 * nbytes or self._memory.device != device:
            self._memory = torch.empty(2 * nbytes, dtype=torch.uint8, device=device)
        return self._memory[:nbytes], self._memory[nbytes : 2 * nbytes]


def encode(
    messages: Messages,
    message: Message,
    shards: Mapping[str, LocalTensor],
    base: Mapping[str, LocalTensor],
    scratch: Scratch,
) -> Changes:
    """A message of a trainer rank, as its changes.

    Args:
        messages: what packs the messages of this rank.
        shards: what the rank holds, by name.
        base: what it held of the version that the replica has.
    """
    device = shards[message.segments[0].source].device
    new, old = scratch.take(message.nbytes, device)
    if _has_gaps(message):
        # What lies between segments is nobody's, and shall not differ.
        new.zero_()
        old.zero_()
    messages.pack(message, shards, new)
    messages.pack_base(message, base, old)
    word = WORD[word_bytes(message)]
    where = differing(new.view(word), old.view(word))
    count = count_of(where)
    encoding = min(Encoding, key=lambda way: body_bytes(message, way, count)) if count else Encoding.INDEX
    if count > WHOLE_ABOVE[device.type] * words(message) or words(message) >= MOST_WORDS:
        encoding = Encoding.WHOLE
    # Eight bytes for each: only once it is known that there are few.
    positions = places_of(where) if encoding is not Encoding.WHOLE else torch.empty(0, dtype=torch.int64)
    nbytes = body_bytes(message, encoding, count)
    head = Head(encoding=encoding, count=words(message) if encoding is Encoding.WHOLE else count, nbytes=nbytes)
    return Changes(head=head, message=message, new=new, changed=count, positions=positions)


def _has_gaps(message: Message) -> bool:
    return any(segment.nbytes != aligned(segment.nbytes, 1) for segment in message.segments)


class Base:
    """One copy of this rank's shards, in the types in which they travel: that is the extra memory.

    It follows what has been committed, not what has been sent: a version that no replica takes leaves it as it is.
    """

    def __init__(self) -> None:
        self.version: int | None = None
        self.shards: dict[str, LocalTensor] = {}

    def advance(
        self, version: int, shards: Mapping[str, LocalTensor], only: frozenset[str] | None, plans: Iterable[Plan]
    ) -> None:
        """A replica has committed a version.

        Args:
            version: which.
            shards: what this rank sent, by name.
            only: those that were sent; all if None.
            plans: by which they were sent.
        """
        if version == self.version:
            return
        sent = {name: shard for name, shard in shards.items() if only is None or name in only}
        new = sent.keys() - self.shards.keys()
        types = _types(plans) if new else {}
        for name in new:
            shard = sent[name]
            self.shards[name] = shard.copy(partial(torch.empty_like, dtype=types.get(name)))
        if sent:
            with torch.no_grad():
                # A few launches on a GPU, however many tensors there are.
                pairs = [
                    (value_of(kept), value_of(tensor))
                    for name, shard in sent.items()
                    for (_, kept), (_, tensor) in zip(self.shards[name].pieces, shard.pieces, strict=True)
                ]
                torch._foreach_copy_([kept for kept, _ in pairs], [tensor for _, tensor in pairs])
        self.version = version

    def clear(self) -> None:
        """Forgets it: no replica has it any more."""
        self.version, self.shards = None, {}

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(value_of(piece).nbytes for shard in self.shards.values() for _box, piece in shard.pieces)


def _types(plans: Iterable[Plan]) -> dict[str, torch.dtype]:
    """By name, the type in which a tensor travels, if that is the same everywhere."""
    found: dict[str, set[str]] = {}
    for plan in plans:
        for transfers in plan.transfers.values():
            for transfer in transfers:
                found.setdefault(transfer.region.source, set()).add(transfer.wire)
    return {name: getattr(torch, next(iter(wires))) for name, wires in found.items() if len(wires) == 1}

"""The sender's half: one message, as its changes since the version that the replica has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from launcher.bridge.codec.delta.bits import count_of, differing, mask_of, places_of
from launcher.bridge.codec.delta.head import MOST_WORDS, WORD, Encoding, Head, body_bytes, values_at, word_bytes, words
from launcher.bridge.codec.local import LocalTensor
from launcher.bridge.codec.messages import Messages
from launcher.bridge.plan import Message
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

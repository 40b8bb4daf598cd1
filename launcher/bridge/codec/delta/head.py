"""What precedes each message of changes: how it is encoded and how long it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch

from launcher.bridge.plan import Message
from launcher.bridge.plan.dtypes import ITEMSIZE
from launcher.bridge.plan.split import ALIGNMENT
from launcher.common.errors import TransferError

HEAD_BYTES = 32
POSITION_BYTES = 4
MOST_WORDS = 1 << 31
"""From here on a position does not fit."""

WORD = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes: the type as which words are compared."""


class Encoding(IntEnum):
    """Of a message's body."""

    WHOLE = 0
    INDEX = 1
    MASK = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Of one message."""

    encoding: Encoding
    count: int
    """Changed words; all of them if WHOLE."""

    nbytes: int
    """Of the body."""

    def write(self, buffer: torch.Tensor) -> None:
        """Fills uint8, shape (HEAD_BYTES,)."""
        buffer.view(torch.int64).copy_(torch.tensor([self.encoding, self.count, self.nbytes, 0]))

    @classmethod
    def read(cls, buffer: torch.Tensor, message: Message) -> Head:
        """The head of a message, from uint8 of shape (HEAD_BYTES,).

        Raises:
            TransferError: it cannot be this message's.
        """
        encoding, count, nbytes, zero = buffer.view(torch.int64).tolist()
        if encoding in tuple(Encoding) and zero == 0 and 0 <= count <= words(message):
            head = cls(encoding=Encoding(encoding), count=count, nbytes=nbytes)
            if nbytes == body_bytes(message, head.encoding, count):
                return head
        raise TransferError(
            f"failed: {encoding}, {count}, {nbytes} do not describe a message of {message.nbytes} bytes."
        )


def word_bytes(message: Message) -> int:
    """Bytes of its words: of its smallest elements."""
    return min(ITEMSIZE[segment.wire] for segment in message.segments)


def words(message: Message) -> int:
    """How many it has, with those between its segments."""
    return message.nbytes // word_bytes(message)


def body_bytes(message: Message, encoding: Encoding, count: int) -> int:
    """Bytes of a body with so many changed words; 0 if there are none."""
    if encoding is Encoding.WHOLE:
        return message.nbytes
    return values_at(message, encoding, count) + count * word_bytes(message) if count else 0


def values_at(message: Message, encoding: Encoding, count: int) -> int:
    """Bytes before the values."""
    size = POSITION_BYTES * count if encoding is Encoding.INDEX else -(-words(message) // 8)
    return -(-size // ALIGNMENT) * ALIGNMENT

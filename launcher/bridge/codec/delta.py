"""Updates that carry only what has changed since the version that a replica has committed.

A message of the plan is compared, word by word, with the same message of that version. Words are as wide as the
smallest element type of the message, and are compared as bits: what is not a number, and the sign of a zero, count like
everything else. A change is the word's new value, so that nothing adds up over versions. On the wire, little-endian::

    message = head [body]             ; no body if it is empty
    head    = encoding count nbytes 0 ; four 64-bit integers: one of Encoding, changed words, bytes of the body
    body    = message                 ; WHOLE: as in a full update
            / positions pad values    ; INDEX: 32-bit positions, rising; padded to 16 bytes; the words in that order
            / bits pad values         ; MASK: a bit for every word of the message, the first one highest; then as above

Each message takes the shortest of these, and WHOLE if a larger share of its words has changed than
:data:`launcher.bridge.codec.delta_encode.WHOLE_ABOVE`. The digest of an update is that of the
whole resulting weights, as in a full update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch

from launcher.bridge.codec.messages import Messages
from launcher.bridge.codec.pack import read_back, write
from launcher.bridge.plan import Message, Segment
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


def differing(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """bool, shape (words,): where two integer tensors of that shape differ."""
    return left != right if left.is_cuda else torch.from_numpy(left.numpy() != right.numpy())


def count_of(where: torch.Tensor) -> int:
    """How many are true."""
    return int(where.sum()) if where.is_cuda else int(np.count_nonzero(where.numpy()))


def places_of(where: torch.Tensor) -> torch.Tensor:
    """int64 positions, rising, of those that are true."""
    return where.nonzero().view(-1) if where.is_cuda else torch.from_numpy(np.flatnonzero(where.numpy()))


def mask_of(positions: torch.Tensor, count: int) -> torch.Tensor:
    """uint8, shape (ceil(count / 8),): one bit for each of ``count`` words, the first one highest."""
    mask = torch.zeros(-(-count // 8) * 8, dtype=torch.bool, device=positions.device)
    mask[positions] = True
    return packed(mask) if mask.is_cuda else torch.from_numpy(np.packbits(mask.numpy()))


def positions_of(mask: torch.Tensor, count: int) -> torch.Tensor:
    """int64 positions of the bits that are set, of ``count`` words; the inverse of :func:`mask_of`."""
    if mask.is_cuda:
        return unpacked(mask)[:count].nonzero().view(-1)
    return torch.from_numpy(np.flatnonzero(np.unpackbits(mask.numpy(), count=count).view(np.bool_)))


def packed(mask: torch.Tensor) -> torch.Tensor:
    """uint8, eight to one, from bool of shape (a multiple of 8,): what numpy's ``packbits`` does."""
    return (mask.view(-1, 8).to(torch.uint8) << _shifts(mask.device)).sum(1, dtype=torch.uint8)


def unpacked(mask: torch.Tensor) -> torch.Tensor:
    """uint8 of ones and zeros, one to eight: what numpy's ``unpackbits`` does."""
    return ((mask.unsqueeze(1) >> _shifts(mask.device)) & 1).view(-1)


def _shifts(device: torch.device) -> torch.Tensor:
    return torch.arange(7, -1, -1, dtype=torch.uint8, device=device)


def apply(
    messages: Messages, message: Message, head: Head, body: torch.Tensor, parameters: Mapping[str, torch.Tensor]
) -> None:
    """Writes a message's changes into parameters, or their shadows, that hold the version before.

    Args:
        messages: what unpacks the messages of this worker.
        body: uint8, shape (head.nbytes,), aligned to 16 bytes.

    Raises:
        TransferError: a position lies outside of the message.
    """
    if head.encoding is Encoding.WHOLE:
        messages.unpack(message, body, parameters)
    elif head.count:
        size = word_bytes(message)
        values = body[values_at(message, head.encoding, head.count) :].view(WORD[size])
        positions = _positions(message, head, body)
        found, write_found, rest = messages.overwrite(message, positions, values, parameters)
        segments = rest.segments if rest is not None else ()
        starts = [segment.offset // size for segment in segments]
        ends = [(segment.offset + segment.nbytes) // size for segment in segments]
        # Changes rise, so that each segment's are one run of them.
        cuts = torch.searchsorted(positions, torch.tensor([*starts, *ends], device=positions.device)).tolist()
        runs = list(zip(cuts[: len(starts)], cuts[len(starts) :], strict=True))
        if found + sum(max(0, stop - start) for start, stop in runs) != head.count:
            raise TransferError("failed: a change lies outside of every tensor.")
        write_found()
        for segment, first, (start, stop) in zip(segments, starts, runs, strict=True):
            if start < stop:
                _overwrite(segment, positions[start:stop] - first, values[start:stop], parameters)


def _positions(message: Message, head: Head, body: torch.Tensor) -> torch.Tensor:
    if head.encoding is Encoding.MASK:
        positions = positions_of(body[: -(-words(message) // 8)], words(message))
        if positions.numel() != head.count:
            raise TransferError(f"failed: {positions.numel()} changes are marked, not {head.count}.")
        return positions
    positions = body[: POSITION_BYTES * head.count].view(torch.int32).to(torch.int64)
    if head.count > 1 and not bool((positions[1:] > positions[:-1]).all()):
        raise TransferError("failed: changes are out of order.")
    return positions


def _overwrite(
    segment: Segment, positions: torch.Tensor, values: torch.Tensor, parameters: Mapping[str, torch.Tensor]
) -> None:
    target = parameters[segment.parameter][segment.target.slices()]
    is_same = segment.axes is None and target.dtype == getattr(torch, segment.wire)
    # A transport may lend memory elsewhere than where the parameter, or its shadow, lies.
    positions, values = positions.to(target.device), values.to(target.device)
    if is_same and target.is_contiguous():
        target.view(-1).view(values.dtype).index_copy_(0, positions, values)
        return
    value = read_back(segment, parameters).reshape(-1).clone()
    value.view(values.dtype).index_copy_(0, positions, values)
    write(segment, value.view(segment.box.shape), parameters)

"""The receiver's half: changes, written over the version that is already there."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from launcher.bridge.codec.delta.bits import positions_of
from launcher.bridge.codec.delta.head import POSITION_BYTES, WORD, Encoding, Head, values_at, word_bytes, words
from launcher.bridge.codec.messages import Messages
from launcher.bridge.codec.pack import read_back, write
from launcher.bridge.plan import Message, Segment
from launcher.common.errors import TransferError


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

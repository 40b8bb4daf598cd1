"""A sender's and a receiver's part of a plan on torch tensors: packing messages and unpacking them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from launcher.bridge.plan.plan import Message, Segment

if TYPE_CHECKING:
    from torch import Tensor

    from launcher.bridge.codec.local import LocalTensor


def pack(message: Message, shards: Mapping[str, LocalTensor], buffer: Tensor) -> None:
    """Writes a message of a trainer rank, casting where it travels in another type.

    Args:
        shards: What the sending rank holds, by trainer name.
        buffer: uint8, at least ``message.nbytes`` long, on the shards' device, aligned to 16 bytes.
    """
    for segment in message.segments:
        local = shards[segment.source].at(segment.box)
        _view(buffer, segment.offset, segment.nbytes, segment.wire).view(segment.box.shape).copy_(local)


def unpack(message: Message, buffer: Tensor, parameters: Mapping[str, Tensor]) -> None:
    """Copies a message into parameters (live ones or their shadows), casting where the type differs."""
    for segment in message.segments:
        value = _view(buffer, segment.offset, segment.nbytes, segment.wire).view(segment.box.shape)
        write(segment, value, parameters)


def write(segment: Segment, value: Tensor, parameters: Mapping[str, Tensor]) -> None:
    """Copies a segment's elements, in the shape of its box, into its parameter."""
    if segment.axes is not None:
        value = value.permute(segment.axes)
    parameters[segment.parameter][segment.target.slices()].copy_(value.reshape(segment.target.shape))


def read_back(segment: Segment, parameters: Mapping[str, Tensor]) -> Tensor:
    """A segment's elements as they travelled, in type and shape of its box: the inverse of :func:`write`.

    A parameter of a larger type than the wire's holds the same values, so it is cast back, which is exact.
    """
    value = parameters[segment.parameter][segment.target.slices()]
    if segment.axes is not None:
        shape = [segment.box.shape[axis] for axis in segment.axes]
        value = value.reshape(shape).permute(*(segment.axes.index(axis) for axis in range(len(segment.axes))))
    return _as_on_the_wire(value.reshape(segment.box.shape), segment.wire)


def repack(message: Message, parameters: Mapping[str, Tensor], buffer: Tensor) -> None:
    """Writes a message out of the parameters that one like it was unpacked into."""
    for segment in message.segments:
        value = read_back(segment, parameters)
        _view(buffer, segment.offset, segment.nbytes, segment.wire).view(segment.box.shape).copy_(value)


def _as_on_the_wire(value: Tensor, wire: str) -> Tensor:
    import torch

    if value.dtype == torch.float32 and wire == "bfloat16" and value.dim() > 0:
        # Its upper half. A cast back would make one pattern of all that are not a number.
        return value.contiguous().view(torch.int16)[..., 1::2].contiguous().view(torch.bfloat16)
    return value.to(getattr(torch, wire))


def _view(buffer: Tensor, offset: int, nbytes: int, dtype: str) -> Tensor:
    import torch

    return buffer[offset : offset + nbytes].view(getattr(torch, dtype))

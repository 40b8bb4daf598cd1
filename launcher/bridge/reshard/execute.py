"""A sender's and a receiver's part of a plan on torch tensors: packing messages and unpacking them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from launcher.bridge.reshard.plan import Message, Plan
from launcher.errors import BridgeError

if TYPE_CHECKING:
    from torch import Tensor


def pack(plan: Plan, message: Message, shards: Mapping[str, Tensor], buffer: Tensor) -> None:
    """Writes a message of a trainer rank, casting where it travels in another type.

    Args:
        shards: What the sending rank holds, by trainer name (``DTensor.to_local()``).
        buffer: uint8, at least ``message.nbytes`` long, on the shards' device, aligned to 16 bytes.

    Raises:
        BridgeError: The message is relayed: its bytes are forwarded as they came, not packed.
    """
    if not isinstance(message.sender, int):
        raise BridgeError(f"A message relayed by engine {message.sender.engine} is forwarded, not packed.")
    for segment in message.segments:
        held = plan.held(segment.source, message.sender)
        local = shards[segment.source][segment.box.within(held).slices()]
        _view(buffer, segment.offset, segment.nbytes, segment.wire).view(segment.box.shape).copy_(local)


def unpack(message: Message, buffer: Tensor, parameters: Mapping[str, Tensor]) -> None:
    """Copies a message into parameters (live ones or their shadows), casting where the type differs."""
    for segment in message.segments:
        value = _view(buffer, segment.offset, segment.nbytes, segment.wire).view(segment.box.shape)
        if segment.axes is not None:
            value = value.permute(segment.axes)
        parameters[segment.parameter][segment.target.slices()].copy_(value.reshape(segment.target.shape))


def _view(buffer: Tensor, offset: int, nbytes: int, dtype: str) -> Tensor:
    import torch

    return buffer[offset : offset + nbytes].view(getattr(torch, dtype))

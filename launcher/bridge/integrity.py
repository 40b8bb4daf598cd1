"""The end-to-end check of an update: what was sent and what arrived, as sums that no sharding changes.

Both sides add up :func:`launcher.bridge.reshard.digest.partial` over the same boxes, each times the key of its tensor:
the sender over its own shards as they go on the wire, the receiver over the tensors that it will write. Sums of senders
add up to the receiver's sum, modulo 2 ** 64.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from launcher.bridge.reshard import Message, Plan, Segment
from launcher.bridge.reshard.digest import partial, tensor_key


def digest_sent(plan: Plan, message: Message, shards: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The sum over a message as its sender holds it: int64 scalar on the shards' device, not waited for."""
    total: torch.Tensor | int = 0
    for segment in message.segments:
        assert isinstance(message.sender, int)
        held = plan.held(segment.source, message.sender)
        local = shards[segment.source][segment.box.within(held).slices()]
        total = total + _weighted(plan, segment, local.to(getattr(torch, segment.wire)))
    return torch.as_tensor(total, dtype=torch.int64)


def digest_received(plan: Plan, message: Message, parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The same sum over the places that the message was unpacked into.

    A parameter of a larger type than the wire's holds the same values, so it is cast back, which is exact.
    """
    total: torch.Tensor | int = 0
    for segment in message.segments:
        value = parameters[segment.parameter][segment.target.slices()]
        if segment.axes is not None:
            shape = [segment.box.shape[axis] for axis in segment.axes]
            value = value.reshape(shape).permute(*(segment.axes.index(axis) for axis in range(len(segment.axes))))
        value = value.reshape(segment.box.shape).to(getattr(torch, segment.wire))
        total = total + _weighted(plan, segment, value)
    return torch.as_tensor(total, dtype=torch.int64)


def _weighted(plan: Plan, segment: Segment, value: torch.Tensor) -> torch.Tensor:
    key = tensor_key(segment.source)
    signed = key - (1 << 64) if key >> 63 else key
    return partial(value.contiguous(), box=segment.box, shape=plan.sources[segment.source].shape) * signed

"""The end-to-end check of an update: what was sent and what arrived, as sums that no sharding changes.

Both sides add up :func:`launcher.bridge.codec.checksum.partial` over the same boxes, each times the key of its tensor:
the sender over its own shards as they go on the wire, the receiver over the tensors that it will write. Sums of senders
add up to the receiver's sum, modulo 2 ** 64.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch

from launcher.bridge.codec.checksum import partial, tensor_key
from launcher.bridge.codec.local import LocalTensor
from launcher.bridge.codec.pack import read_back
from launcher.bridge.plan import Message, Plan, Segment


def digest_sent(plan: Plan, message: Message, shards: Mapping[str, LocalTensor]) -> torch.Tensor:
    """The sum over a message as its sender holds it: int64 scalar on the shards' device, not waited for."""
    values = []
    for segment in message.segments:
        local = shards[segment.source].at(segment.box)
        values.append(_partial(plan, segment, local.to(getattr(torch, segment.wire))))
    return _weighted(message, values)


def digest_received(plan: Plan, message: Message, parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The same sum over the places that the message was unpacked into."""
    return _weighted(message, [_partial(plan, segment, read_back(segment, parameters)) for segment in message.segments])


def _partial(plan: Plan, segment: Segment, value: torch.Tensor) -> torch.Tensor:
    return partial(value.contiguous(), box=segment.box, shape=plan.sources[segment.source].shape)


def _weighted(message: Message, values: list[torch.Tensor]) -> torch.Tensor:
    """All of a message's sums, each times its tensor's key, in one step."""
    if not values:
        return torch.zeros((), dtype=torch.int64)
    keys = _keys(tuple(segment.source for segment in message.segments), values[0].device)
    return (torch.stack(values) * keys).sum()


@lru_cache(maxsize=4096)
def _keys(names: tuple[str, ...], device: torch.device) -> torch.Tensor:
    keys = [tensor_key(name) for name in names]
    return torch.tensor([key - (1 << 64) if key >> 63 else key for key in keys], device=device)

"""Large pieces that lie in one stretch are sent from where they are, and not packed, over wires that can do so.

Both ends cut a message alike, by its segments' sizes alone; the sender then sees whether a piece lies in one stretch,
and else packs it, as it does with the small ones.

They are not received where they belong: what a transport that was aborted still writes, gloo does so for as long as the
message lasts, must not come into weights that are received anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby

import torch

from launcher.bridge.reshard import Message, Plan
from launcher.bridge.reshard.cut import aligned

LARGE_BYTES = 256 << 10
"""Below, what a message of its own costs is more than a copy."""


def cut(messages: Iterable[Message], is_direct: Callable[[Message], bool]) -> Iterator[Message]:
    """Each large segment as a message of its own, those between them together; in the same order.

    Args:
        is_direct: whether a message goes over a wire that can do so; others stay as they are.
    """
    for message in messages:
        if not is_direct(message):
            yield message
            continue
        for _, group in groupby(message.segments, key=lambda s: id(s) if s.nbytes >= LARGE_BYTES else None):
            segments = tuple(group)
            begin, last = segments[0].offset, segments[-1]
            moved = tuple(replace(segment, offset=segment.offset - begin) for segment in segments)
            yield replace(message, segments=moved, nbytes=last.offset - begin + aligned(last.nbytes, 1))


def sent_from(plan: Plan, message: Message, shards: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """A message's bytes where they lie in a trainer rank's shards; None if they must be packed."""
    if len(message.segments) != 1 or message.nbytes < LARGE_BYTES or not isinstance(message.sender, int):
        return None
    (segment,) = message.segments
    held = plan.held(segment.source, message.sender)
    local = shards[segment.source][segment.box.within(held).slices()]
    if local.device.type != "cpu" or local.dtype != getattr(torch, segment.wire) or not local.is_contiguous():
        return None
    content = local.detach().view(-1).view(torch.uint8)
    return content if content.numel() == message.nbytes else None

"""Large segments that are contiguous on one side are not packed and unpacked, over wires that can do without.

They are sent from where they are, and received where they belong. Both ends split a message alike, by its segments'
sizes alone; each then sees whether a segment is contiguous on its side, and else packs or unpacks it, as it does with
the small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby

import torch

from launcher.bridge.plan import Message, Plan, Segment
from launcher.bridge.plan.split import aligned

LARGE_BYTES = 256 << 10
"""Below, what a message of its own costs is more than a copy."""


def split_large(messages: Iterable[Message], is_direct: Callable[[Message], bool]) -> Iterator[Message]:
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
    segment = _alone(message)
    if segment is None or not isinstance(message.sender, int):
        return None
    held = plan.held(segment.source, message.sender)
    return _stretch(segment, shards[segment.source][segment.box.within(held).slices()])


def received_into(message: Message, parameters: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Where a message's bytes belong in a worker's parameters; None if they must be unpacked."""
    segment = _alone(message)
    if segment is None or segment.axes is not None:
        return None
    return _stretch(segment, parameters[segment.parameter][segment.target.slices()])


def _alone(message: Message) -> Segment | None:
    is_alone = len(message.segments) == 1 and message.segments[0].nbytes == message.nbytes >= LARGE_BYTES
    return message.segments[0] if is_alone else None


def _stretch(segment: Segment, view: torch.Tensor) -> torch.Tensor | None:
    if view.device.type != "cpu" or view.dtype != getattr(torch, segment.wire) or not view.is_contiguous():
        return None
    return view.detach().view(-1).view(torch.uint8)

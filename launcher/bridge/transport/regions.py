"""Large tensors go from where they lie to where they belong, without being packed and unpacked.

A link that takes one tensor as a message (:class:`DirectSendWire`) gets large segments as messages of their own. A link
that takes several regions as one message (:class:`RegionSendWire`) gets all of them at once.

Both ends split a message alike, by the plan alone: segments that travel in the type and order in which both sides hold
them are regions of their own; the rest, small or cast or turned, is packed and is the last region. An end that cannot
give or take a region as rows of bytes packs it after all, or unpacks it, without the other end's knowledge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch

from launcher.bridge.codec.local import LocalTensor
from launcher.bridge.plan import Message, Plan, Segment
from launcher.bridge.plan.split import aligned
from launcher.bridge.transport.base import MemoryRegion, RegionSendWire

LARGE_BYTES = 256 << 10
"""Segments of at least so many bytes are not packed; below, a message or region of its own costs more than a copy."""

FEW = 16
"""Smaller ones are, too, where a message has no more of them: a copy each costs less than packing and unpacking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitMessage:
    """A message as its regions."""

    in_place: tuple[Segment, ...]
    """Each a region."""

    packed: Message | None
    """The last region: the other segments, with their places in it."""


def split_into_regions(plan: Plan, message: Message) -> SplitMessage:
    """The regions of a message; the same on both sides."""
    receiver = message.receiver
    dtypes = {p.name: p.dtype for p in plan.engines[receiver.engine].parameters[receiver.rank]}
    plain = [
        segment
        for segment in message.segments
        if segment.axes is None and plan.sources[segment.source].dtype == segment.wire == dtypes[segment.parameter]
    ]
    large = [segment for segment in plain if segment.nbytes >= LARGE_BYTES]
    in_place = plain if len(plain) - len(large) <= FEW else large
    chosen = set(map(id, in_place))
    rest = [segment for segment in message.segments if id(segment) not in chosen]
    return SplitMessage(in_place=tuple(in_place), packed=packed(message, rest) if rest else None)


def packed(message: Message, segments: Sequence[Segment]) -> Message:
    """Some segments of a message, one after the other."""
    moved, offset = [], 0
    for segment in segments:
        moved.append(replace(segment, offset=offset))
        offset += aligned(segment.nbytes, 1)
    return replace(message, segments=tuple(moved), nbytes=offset)


class Splits:
    """Splits of messages, those of whole versions made once."""

    def __init__(self, plan: Plan, whole: Sequence[Message]) -> None:
        self._plan = plan
        self._kept = {id(message): (message, split_into_regions(plan, message)) for message in whole}

    def of(self, message: Message) -> SplitMessage:
        """As :func:`split_into_regions`."""
        kept = self._kept.get(id(message))
        return kept[1] if kept is not None else split_into_regions(self._plan, message)

    @property
    def packed(self) -> list[Message]:
        """What is packed of whole versions."""
        return [found.packed for _message, found in self._kept.values() if found.packed is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SentRegions:
    """What a sender does for one message."""

    regions: tuple[MemoryRegion | None, ...]
    """For each segment in place; None if it is packed after all."""

    packed: Message | None
    """Those, in their order, and the message's packed segments after them."""

    ends: tuple[int, ...]
    """Where each region that is packed ends, in bytes from the beginning of the packed message."""

    keep: tuple[torch.Tensor, ...]
    """What owns the regions' memory."""


def sent_regions(
    message: Message,
    split: SplitMessage,
    shards: Mapping[str, LocalTensor],
    wire: RegionSendWire,
) -> SentRegions:
    """Where a trainer rank has the regions of a message."""
    regions: list[MemoryRegion | None] = []
    keep, odd = [], []
    for segment in split.in_place:
        shard = shards[segment.source]
        view = shard.at(segment.box)
        is_here = view.device.type == wire.device.type and not shard.is_computed
        region = region_of(view, segment.wire) if is_here else None
        if region is not None and wire.reaches(region):
            keep.append(view)
        else:
            odd.append(segment)
            region = None
        regions.append(region)
    if not odd:
        last = split.packed
        return SentRegions(regions=tuple(regions), packed=last, ends=(last.nbytes,) if last else (), keep=tuple(keep))
    whole = packed(message, [*odd, *(split.packed.segments if split.packed else ())])
    ends = [segment.offset + segment.nbytes for segment in whole.segments[: len(odd)]]
    if split.packed:
        ends.append(whole.nbytes)
    return SentRegions(regions=tuple(regions), packed=whole, ends=tuple(ends), keep=tuple(keep))


def all_regions(sent: SentRegions, sizes: Sequence[int], buffer: torch.Tensor | None) -> list[MemoryRegion]:
    """The regions to be posted, those that were packed in ``buffer`` among them.

    Args:
        sizes: bytes of each region of the message, the packed one's included.
    """
    base, ends = 0 if buffer is None else buffer.data_ptr(), iter(sent.ends)
    places = [*sent.regions, *([None] * (len(sizes) - len(sent.regions)))]
    found = []
    for place, nbytes in zip(places, sizes, strict=True):
        if place is not None:
            found.append(place)
        else:
            found.append(MemoryRegion(address=base + next(ends) - nbytes, rows=1, width=nbytes, pitch=nbytes))
    return found


def sizes_of(split: SplitMessage) -> list[int]:
    """Bytes of every region of a message."""
    return [*(segment.nbytes for segment in split.in_place), *((split.packed.nbytes,) if split.packed else ())]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedRegions:
    """What a receiver does for one message."""

    targets: tuple[MemoryRegion | int, ...]
    """For each region where it belongs, or its bytes if it is staged."""

    staged: Message | None
    """What is to be unpacked of the staged bytes."""


def received_regions(
    message: Message,
    split: SplitMessage,
    parameters: Mapping[str, torch.Tensor],
    device: torch.device,
    accepts: Callable[[MemoryRegion], bool],
    *,
    is_aside: bool,
) -> ReceivedRegions:
    """Where the regions of a message belong in a worker's parameters.

    Args:
        is_aside: whether regions may be received to where they belong at all.
    """
    targets: list[MemoryRegion | int] = []
    staged = []
    for segment in split.in_place:
        view = parameters[segment.parameter][segment.target.slices()]
        region = region_of(view, segment.wire) if is_aside and view.device.type == device.type else None
        if region is not None and accepts(region):
            targets.append(region)
        else:
            targets.append(segment.nbytes)
            staged.append(segment)
    if split.packed is not None:
        targets.append(split.packed.nbytes)
    if not staged:
        return ReceivedRegions(targets=tuple(targets), staged=split.packed)
    last = split.packed.segments if split.packed is not None else ()
    return ReceivedRegions(targets=tuple(targets), staged=packed(message, [*staged, *last]))


def region_of(view: torch.Tensor, dtype: str) -> MemoryRegion | None:
    """A part of a tensor as rows of bytes in row-major order; None if it is none, or of another type."""
    if view.dtype != getattr(torch, dtype):
        return None
    size = view.element_size()
    if view.is_contiguous():
        nbytes = view.numel() * size
        return MemoryRegion(address=view.data_ptr(), rows=1, width=nbytes, pitch=nbytes)
    dims = _merged(view)
    if len(dims) > 2 or dims[-1][1] != 1:
        return None
    (rows, pitch), (width, _) = dims if len(dims) == 2 else ((1, dims[0][0]), dims[0])
    if pitch < width:
        return None
    return MemoryRegion(address=view.data_ptr(), rows=rows, width=width * size, pitch=pitch * size)


def _merged(view: torch.Tensor) -> list[tuple[int, int]]:
    """Sizes and strides, in elements, with dimensions merged that follow each other as one."""
    dims: list[tuple[int, int]] = []
    for size, stride in zip(view.shape, view.stride(), strict=True):
        if size == 1:
            continue
        if dims and dims[-1][1] == size * stride:
            dims[-1] = (dims[-1][0] * size, stride)
        else:
            dims.append((size, stride))
    return dims or [(1, 1)]


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


def sent_from(message: Message, shards: Mapping[str, LocalTensor]) -> torch.Tensor | None:
    """A message's bytes where they lie in a trainer rank's shards; None if they must be packed."""
    segment = _alone(message)
    if segment is None or shards[segment.source].is_computed:
        return None
    return _stretch(segment, shards[segment.source].at(segment.box))


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

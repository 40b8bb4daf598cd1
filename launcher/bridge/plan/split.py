"""One required box split along the trainer's shards, and who may send each of the smaller boxes."""

from __future__ import annotations

from dataclasses import dataclass, field

from launcher.bridge.plan.boxes import Box, largest_chunk, take_chunks
from launcher.bridge.plan.sharding import Shard

ALIGNMENT = 16
"""Every segment begins at a multiple of this many bytes of its message, so that it can be read with wide loads."""

SPLIT_BYTES = 1 << 20
"""A box at least this large that several equally near ranks hold is divided among them."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Location:
    """Where a rank runs."""

    node: int
    gpu: int


def distance(a: Location, b: Location) -> int:
    """0 on the same GPU, 1 on the same node, 2 across nodes."""
    return 2 if a.node != b.node else int(a.gpu != b.gpu)


def aligned(elements: int, itemsize: int) -> int:
    """Bytes that a segment takes in a message."""
    return -(-elements * itemsize // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """The boxes that make up one required box, and the trainer rank that sends each; one object for all equal ones."""

    boxes: tuple[Box, ...]
    sources: tuple[int, ...]
    by_source: dict[int, tuple[int, ...]] = field(init=False, repr=False)
    """For each sending rank, indices of the boxes that it sends."""

    def __post_init__(self) -> None:
        index: dict[int, list[int]] = {}
        for i, source in enumerate(self.sources):
            index.setdefault(source, []).append(i)
        object.__setattr__(self, "by_source", {s: tuple(indices) for s, indices in index.items()})

    def bytes_from(self, source: int, itemsize: int, start: int = 0, stop: int = 1, count: int = 1) -> int:
        """Bytes that one rank sends of chunks ``start`` to ``stop`` of every box, divided into ``count`` chunks."""
        mine = (self.boxes[i] for i in self.by_source.get(source, ()))
        return sum(aligned(take_chunks(box, start, stop, count).volume, itemsize) for box in mine)

    def chunk_bytes(self, itemsize: int, count: int = 1) -> int:
        """Upper bound of the bytes of one of ``count`` chunks from all senders; exact for one chunk."""
        return sum(aligned(largest_chunk(box, count), itemsize) for box in self.boxes)


def possible_splits(
    shards: tuple[Shard, ...], box: Box, itemsize: int, trainers: tuple[Location, ...], to: Location
) -> tuple[Split, ...]:
    """The equally good splits of ``box`` over its nearest holders, one per choice among holders at equal distance.

    Large boxes are divided among all their nearest holders, so a choice is left only for small ones.
    """
    boxes: list[Box] = []
    holders: list[tuple[int, ...]] = []
    for shard in shards:
        common = box.intersect(shard.box)
        if common is None:
            continue
        near = nearest(shard.ranks, trainers, to)
        if len(near) > 1 and common.volume * itemsize >= SPLIT_BYTES:
            for i in range(len(near)):
                divided = take_chunks(common, i, i + 1, len(near))
                if divided.volume:
                    boxes.append(divided)
                    holders.append((near[i],))
        else:
            boxes.append(common)
            holders.append(near)
    choices = max(map(len, holders), default=1)
    frozen = tuple(boxes)
    return tuple(
        Split(boxes=frozen, sources=tuple(near[choice % len(near)] for near in holders)) for choice in range(choices)
    )


def nearest(ranks: tuple[int, ...], trainers: tuple[Location, ...], to: Location) -> tuple[int, ...]:
    """The holders at the least distance, in rank order."""
    if len(ranks) == 1:
        return ranks
    distances = [distance(trainers[rank], to) for rank in ranks]
    least = min(distances)
    return tuple(rank for rank, d in zip(ranks, distances, strict=True) if d == least)

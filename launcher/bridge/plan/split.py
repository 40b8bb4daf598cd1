"""One needed box cut by the trainer's shards: the pieces, and who may send each."""

from __future__ import annotations

from dataclasses import dataclass, field

from launcher.bridge.plan.boxes import Box, largest_share, share
from launcher.bridge.plan.sharding import Shard

ALIGNMENT = 16
"""Every segment begins at a multiple of this many bytes of its message, so that it can be read with wide loads."""

SPLIT_BYTES = 1 << 20
"""A piece at least this large that several equally near ranks hold is shared out among them."""


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
class Cut:
    """Pieces of one needed box and the trainer rank that sends each; shared by all needs that look alike."""

    pieces: tuple[Box, ...]
    sources: tuple[int, ...]
    by_source: dict[int, tuple[int, ...]] = field(init=False, repr=False)
    """For each sending rank, which pieces are its own."""

    def __post_init__(self) -> None:
        index: dict[int, list[int]] = {}
        for i, source in enumerate(self.sources):
            index.setdefault(source, []).append(i)
        object.__setattr__(self, "by_source", {s: tuple(pieces) for s, pieces in index.items()})

    def bytes_from(self, source: int, itemsize: int, start: int = 0, stop: int = 1, parts: int = 1) -> int:
        """Bytes that one rank sends of these shares of every piece."""
        mine = (self.pieces[i] for i in self.by_source.get(source, ()))
        return sum(aligned(share(piece, start, stop, parts).volume, itemsize) for piece in mine)

    def share_bytes(self, itemsize: int, parts: int = 1) -> int:
        """Upper bound of the bytes of one of ``parts`` shares from all senders; exact for one part."""
        return sum(aligned(largest_share(piece, parts), itemsize) for piece in self.pieces)


def cut(
    shards: tuple[Shard, ...], box: Box, itemsize: int, trainers: tuple[Location, ...], to: Location
) -> tuple[Cut, ...]:
    """The equally good ways to fetch ``box``: pieces from the nearest holders, one way per choice among equals.

    Pieces worth it are split over all their nearest holders, so a choice is left only for small ones.
    """
    pieces: list[Box] = []
    holders: list[tuple[int, ...]] = []
    for shard in shards:
        piece = box.intersect(shard.box)
        if piece is None:
            continue
        near = nearest(shard.ranks, trainers, to)
        if len(near) > 1 and piece.volume * itemsize >= SPLIT_BYTES:
            for i in range(len(near)):
                part = share(piece, i, i + 1, len(near))
                if part.volume:
                    pieces.append(part)
                    holders.append((near[i],))
        else:
            pieces.append(piece)
            holders.append(near)
    ways = max(map(len, holders), default=1)
    frozen = tuple(pieces)
    return tuple(Cut(pieces=frozen, sources=tuple(near[way % len(near)] for near in holders)) for way in range(ways))


def nearest(ranks: tuple[int, ...], trainers: tuple[Location, ...], to: Location) -> tuple[int, ...]:
    """The holders at the least distance, in rank order."""
    if len(ranks) == 1:
        return ranks
    distances = [distance(trainers[rank], to) for rank in ranks]
    least = min(distances)
    return tuple(rank for rank, d in zip(ranks, distances, strict=True) if d == least)

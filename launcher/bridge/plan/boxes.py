"""Axis-aligned boxes of elements in the coordinates of a whole tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True)
class Box:
    """Elements with ``start[d] <= index[d] < stop[d]`` for every dimension; a scalar is the box ``((), ())``."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @classmethod
    def full(cls, shape: Sequence[int]) -> Box:
        """The box of a whole tensor."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per dimension."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def volume(self) -> int:
        """Elements; 0 when any dimension is empty or turned around."""
        return prod(max(0, b - a) for a, b in zip(self.start, self.stop, strict=True))

    def intersect(self, other: Box) -> Box | None:
        """The common elements, or None when there are none."""
        start = tuple(map(max, self.start, other.start))
        stop = tuple(map(min, self.stop, other.stop))
        return Box(start, stop) if all(a < b for a, b in zip(start, stop, strict=True)) else None

    def contains(self, other: Box) -> bool:
        """Whether every element of ``other`` lies in this box."""
        return all(map(int.__le__, self.start, other.start)) and all(map(int.__ge__, self.stop, other.stop))

    def within(self, origin: Box) -> Box:
        """The same elements in coordinates that begin at the first element of ``origin``."""
        return Box(
            tuple(a - o for a, o in zip(self.start, origin.start, strict=True)),
            tuple(b - o for b, o in zip(self.stop, origin.start, strict=True)),
        )

    def narrow(self, axis: int, start: int, stop: int) -> Box:
        """This box with one dimension replaced; ``start`` and ``stop`` are absolute."""
        return Box(
            (*self.start[:axis], start, *self.start[axis + 1 :]),
            (*self.stop[:axis], stop, *self.stop[axis + 1 :]),
        )

    def slices(self) -> tuple[slice, ...]:
        """Index for a tensor or array that begins at the origin."""
        return tuple(map(slice, self.start, self.stop))

    def run_length(self, shape: Sequence[int]) -> int:
        """Elements per contiguous run of this box in a row-major tensor of ``shape``.

        The box is one run, and needs no packing, when this equals its volume.
        """
        run = 1
        for size, extent in zip(reversed(self.shape), reversed(shape), strict=True):
            run *= size
            if size != extent:
                break
        return run


def chunk(size: int, parts: int, index: int) -> tuple[int, int]:
    """Start and stop of one chunk under ``torch.chunk``: ceil-sized, the last ones shorter or empty."""
    step = -(-size // parts)
    return min(index * step, size), min((index + 1) * step, size)


def take_chunks(box: Box, start: int, stop: int, count: int) -> Box:
    """Chunks ``start`` to ``stop`` of ``count`` near-equal ones along the first dimension that is long enough.

    The chunks partition the box; some are empty when no dimension has ``count`` elements.
    """
    if stop - start == count:
        return box
    axis = _chunk_axis(box.shape, count)
    size, first = box.shape[axis], box.start[axis]
    return box.narrow(axis, first + size * start // count, first + size * stop // count)


def largest_chunk(box: Box, count: int) -> int:
    """Elements of the largest single chunk that `take_chunks` makes."""
    if count == 1:
        return box.volume
    size = box.shape[_chunk_axis(box.shape, count)]
    return box.volume // size * -(-size // count)


def _chunk_axis(shape: Sequence[int], count: int) -> int:
    return next((d for d, size in enumerate(shape) if size >= count), max(range(len(shape)), key=shape.__getitem__))


def tiling_problem(outer: Box, boxes: Iterable[Box]) -> str | None:
    """Why ``boxes`` do not cover every element of ``outer`` exactly once, or None when they do.

    Exact: boxes that lie inside, do not meet pairwise, and have the volume of the whole are a partition.
    """
    tiles = []
    for box in boxes:
        if len(box.start) != len(outer.start):
            return f"{describe(box)} has another number of dimensions than {describe(outer)}"
        if not outer.contains(box):
            return f"{describe(box)} lies outside {describe(outer)}"
        if box.volume:
            tiles.append(box)
    if pair := _first_overlap(tiles):
        return f"{describe(pair[0])} and {describe(pair[1])} overlap"
    missing = outer.volume - sum(box.volume for box in tiles)
    return f"{missing} of {outer.volume} elements of {describe(outer)} are written by nobody" if missing else None


def describe(box: Box) -> str:
    """``[0:4, 8:16]``, for messages."""
    return "[" + ", ".join(f"{a}:{b}" for a, b in zip(box.start, box.stop, strict=True)) + "]"


def _first_overlap(boxes: list[Box]) -> tuple[Box, Box] | None:
    # Divide by gaps along any dimension until single boxes remain. Shards of real placements always divide; what does
    # not (a pinwheel, or a true overlap) is compared pair by pair.
    stack = [boxes]
    while stack:
        group = stack.pop()
        if len(group) < 2:
            continue
        for axis in range(len(group[0].start)):
            clusters = list(_clusters(group, axis))
            if len(clusters) > 1:
                stack.extend(clusters)
                break
        else:
            for i, box in enumerate(group):
                for other in group[i + 1 :]:
                    if box.intersect(other):
                        return box, other
    return None


def _clusters(boxes: list[Box], axis: int) -> Iterator[list[Box]]:
    ordered = sorted(boxes, key=lambda box: box.start[axis])
    cluster, reach = [ordered[0]], ordered[0].stop[axis]
    for box in ordered[1:]:
        if box.start[axis] >= reach:
            yield cluster
            cluster, reach = [], box.stop[axis]
        cluster.append(box)
        reach = max(reach, box.stop[axis])
    yield cluster

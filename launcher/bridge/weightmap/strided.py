"""Arithmetic of strided views, without torch: which box of a tensor a view covers, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.bridge.plan import Box

EXPLODE = 64
"""A view that is no box is taken apart into at most this many that are."""


@dataclass(frozen=True, slots=True)
class Dim:
    """One dimension of a pair of views of one shape that are walked together."""

    count: int
    stride: int
    """Elements between neighbours in the view that is looked at."""

    other: int
    """The same in the view on the other side."""


@dataclass(frozen=True, slots=True)
class StridedLayout:
    """A tensor in its storage; dense, but with its dimensions in any order."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def contiguous(cls, shape: Sequence[int]) -> StridedLayout:
        """Row-major."""
        strides, step = [], 1
        for size in reversed(shape):
            strides.append(step)
            step *= max(size, 1)
        return cls(tuple(shape), tuple(reversed(strides)))


@dataclass(frozen=True, slots=True)
class Located:
    """A view in index coordinates: per dimension of the tensor a first index and the steps made from it."""

    start: tuple[int, ...]
    steps: tuple[tuple[Dim, ...], ...]
    """Per dimension, widest first; ``stride`` counts indices of that dimension."""

    def box(self) -> Box | None:
        """The box that the view covers, each element once; None when it is not one."""
        stop = []
        for first, dims in zip(self.start, self.steps, strict=True):
            covered = 1
            for dim in reversed(dims):
                if dim.stride != covered:
                    return None
                covered *= dim.count
            stop.append(first + covered)
        return Box(self.start, tuple(stop))


@dataclass(frozen=True, slots=True)
class BoxView:
    """A box on one side, and the other side as a strided view of the box's elements in row-major order."""

    box: Box
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def locate(offset: int, dims: Sequence[Dim], layout: StridedLayout) -> Located | None:
    """A strided view (``offset`` in elements of the storage) in index coordinates; None if it is irregular there."""
    order = sorted(range(len(layout.shape)), key=lambda d: -layout.strides[d])
    order = [d for d in order if layout.shape[d] > 1]
    start = [0] * len(layout.shape)
    for d in order:
        start[d], offset = divmod(offset, layout.strides[d])
        if start[d] >= layout.shape[d]:
            return None
    if offset:
        return None
    steps: list[list[Dim]] = [[] for _ in layout.shape]
    for dim in dims:
        count, stride, other = dim.count, dim.stride, dim.other
        while count > 1:
            fitting = [d for d in order if layout.strides[d] <= stride and stride % layout.strides[d] == 0]
            if not fitting:
                return None
            d = fitting[0]
            step = stride // layout.strides[d]
            if start[d] + step * (count - 1) < layout.shape[d]:
                steps[d].append(Dim(count, step, other))
                break
            # The view runs on into the next dimension (it was flattened): this one must then be walked to its end.
            inner = layout.shape[d] // step
            if layout.shape[d] % step or start[d] >= step or inner < 2 or count % inner:
                return None
            steps[d].append(Dim(inner, step, other))
            count, stride, other = count // inner, stride * inner, other * inner
    for d, found in enumerate(steps):
        found.sort(key=lambda dim: -dim.stride)
        if start[d] + sum(dim.stride * (dim.count - 1) for dim in found) >= max(layout.shape[d], 1):
            return None
    return Located(tuple(start), tuple(map(tuple, steps)))


def through(located: Located, offset: int, strides: Sequence[int]) -> tuple[int, list[Dim]]:
    """The same elements where the tensor is itself a strided view (a copy of one) of another storage."""
    offset += sum(first * stride for first, stride in zip(located.start, strides, strict=True))
    dims = [
        Dim(dim.count, dim.stride * stride, dim.other)
        for found, stride in zip(located.steps, strides, strict=True)
        for dim in found
    ]
    return offset, dims


def box_views(offset: int, other_offset: int, dims: Sequence[Dim], layout: StridedLayout) -> list[BoxView] | None:
    """A pair of views as boxes of the one side and strided views of the other; None when it is too irregular.

    Broadcast dimensions and strided slices, which no single box covers, are taken apart if they are short.
    """
    located = locate(offset, [dim for dim in dims if dim.stride], layout)
    repeated = next((dim for dim in dims if not dim.stride and dim.count > 1), None)
    box = located.box() if located else None
    if located is not None and box is not None and repeated is None:
        return [_box_view(located, box, other_offset)]
    # No single box: walk the dimension that is in the way, element by element.
    loose = repeated or next((d for d in sorted(dims, key=lambda d: d.count) if d.count > 1 and _breaks(d, dims)), None)
    if loose is None or loose.count > EXPLODE:
        return None
    rest = list(dims)
    rest.remove(loose)
    found: list[BoxView] = []
    for i in range(loose.count):
        part = box_views(offset + i * loose.stride, other_offset + i * loose.other, rest, layout)
        if part is None or len(found) + len(part) > EXPLODE:
            return None
        found += part
    return found


def _breaks(dim: Dim, dims: Sequence[Dim]) -> bool:
    # A dimension whose stride is not the extent of the others below it leaves gaps.
    below = 1
    for other in sorted(dims, key=lambda d: d.stride):
        if other is dim:
            return other.stride != below
        below = other.stride * other.count
    return False


def _box_view(located: Located, box: Box, offset: int) -> BoxView:
    shape: list[int] = []
    strides: list[int] = []
    for dims in located.steps:
        merged: list[Dim] = []
        for dim in dims:
            if merged and merged[-1].other == dim.other * dim.count:
                merged[-1] = Dim(merged[-1].count * dim.count, dim.stride, dim.other)
            else:
                merged.append(dim)
        shape += [dim.count for dim in merged] or [1]
        strides += [dim.other for dim in merged] or [0]
    return BoxView(box, offset, tuple(shape), tuple(strides))

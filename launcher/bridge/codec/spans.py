"""What a message's segments are in memory: rows of bytes at addresses, the form in which a GPU gets them as a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.bridge.plan.boxes import Box

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """Rows of a tensor, and where they lie in a message one after the other."""

    address: int
    stride: int
    """Bytes from one row to the next; 0 for a single one."""

    rows: int
    nbytes: int
    """Of a row."""

    offset: int
    """Bytes from the beginning of the message."""

    @property
    def alignment(self) -> int:
        """What all its numbers of bytes are multiples of."""
        return self.address | self.stride | self.nbytes | self.offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Summed:
    """Rows of a tensor, and which rows and bytes of the whole tensor they are in its digest."""

    address: int
    stride: int
    rows: int
    nbytes: int
    first_row: int
    first_byte: int
    key: int
    """Of the tensor, as a signed 64-bit number."""

    @property
    def alignment(self) -> int:
        """What all its numbers of bytes are multiples of; the place within a row matters up to a word."""
        return self.address | self.stride | self.nbytes | (self.first_byte % 4)


def copied(view: Tensor, offset: int) -> list[Copied] | None:
    """A part of a tensor whose elements, in row-major order, lie in a message from ``offset`` on.

    None if elements of a row do not follow each other in memory.
    """
    if not view.numel():
        return []
    size = view.element_size()
    if view.is_contiguous():
        return [Copied(address=view.data_ptr(), stride=0, rows=1, nbytes=view.numel() * size, offset=offset)]
    if view.stride(-1) != 1:
        return None
    found = []
    for matrix, _first in _matrices(view, (0,) * view.dim(), tuple(view.shape), 0):
        rows, columns = matrix.shape
        stride = matrix.stride(0) * size if rows > 1 else 0
        found.append(Copied(address=matrix.data_ptr(), stride=stride, rows=rows, nbytes=columns * size, offset=offset))
        offset += rows * columns * size
    return found


def summed(view: Tensor, box: Box, shape: Sequence[int], key: int) -> list[Summed] | None:
    """A box of a tensor of ``shape``, in the terms of its digest; ``view`` has the box's shape.

    None if elements of a row do not follow each other in memory.
    """
    if not view.numel():
        return []
    if view.dim() == 0:
        view, box, shape = view.view(1), Box((0,), (1,)), (1,)
    if view.shape[-1] > 1 and view.stride(-1) != 1:
        return None
    size = view.element_size()
    found = []
    for matrix, first_row in _matrices(view, box.start, tuple(shape), 0):
        rows, columns = matrix.shape
        found.append(
            Summed(
                address=matrix.data_ptr(),
                stride=matrix.stride(0) * size if rows > 1 else 0,
                rows=rows,
                nbytes=columns * size,
                first_row=first_row,
                first_byte=box.start[-1] * size,
                key=key - (1 << 64) if key >> 63 else key,
            )
        )
    return found


def _matrices(view: Tensor, start: tuple[int, ...], shape: tuple[int, ...], row: int) -> Iterator[tuple[Tensor, int]]:
    """The view as few matrices, each of rows that follow each other in the whole tensor, and the first row of each.

    Args:
        start: where the view begins in the whole tensor.
        shape: of the whole tensor.
        row: index of the part of the whole tensor that the view is taken from, row-major over its first dimensions.
    """
    if view.dim() == 1:
        yield view.as_strided((1, view.shape[0]), (0, 1)), 0
        return
    if view.dim() == 2:
        yield view, row * shape[0] + start[0]
        return
    if tuple(view.shape[1:-1]) == shape[1:-1] and _collapses(view):
        first = row * shape[0] + start[0]
        for size in shape[1:-1]:
            first *= size
        yield view.view(-1, view.shape[-1]), first
        return
    for index in range(view.shape[0]):
        yield from _matrices(view[index], start[1:], shape[1:], row * shape[0] + start[0] + index)


def _collapses(view: Tensor) -> bool:
    """Whether all dimensions but the last are one."""
    pairs = zip(view.stride()[:-2], view.shape[1:-1], view.stride()[1:-1], strict=True)
    return all(outer == size * inner for outer, size, inner in pairs)

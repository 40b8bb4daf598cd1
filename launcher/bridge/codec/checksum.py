"""A digest of a tensor that is the same under any sharding: digests of boxes add up to the digest of the whole.

Definition. A tensor of shape (n0, ..., nk) is a matrix of rows r (all leading indices, flattened row-major) and of
bytes j = 0, 1, ... along the last dimension; scalars and vectors have the one row 0. Byte x at (r, j) contributes

    a(r) * b(j // 4) * v * 256 ** (j % 4)  mod 2 ** 64,    v = x, or x - 256 for the fourth byte (j % 4 == 3) if x > 127

and a digest is the sum over the bytes of a box. So a row is a sequence of little-endian signed 32-bit words, widened
to 64 bits. Weights a(r) = splitmix64(r) | 1 and b(c) = splitmix64(c XOR COLUMN_SALT) | 1 depend on the place only.

The sum runs over bytes, so any partition into boxes adds up exactly, for every element size and wherever boxes cut a
word. Weights are odd, hence units mod 2 ** 64: any change within one word always changes the digest. Changes of several
words cancel with a chance of about 2 ** -32 at worst (all in the words' top bits) and 2 ** -63 at best.
The digest finds faults, not forgery.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING

import torch

from launcher.bridge.plan.boxes import Box

if TYPE_CHECKING:
    from collections.abc import Sequence

MASK = (1 << 64) - 1
COLUMN_SALT = 0x5DEECE66D5DEECE6
"""Keeps the weights of columns apart from those of rows."""

BLOCK_WORDS = 1 << 17
"""Words that are widened at a time on a CPU: 1 MiB, which stays in the second-level cache."""

_thread = threading.local()
"""Memory that every block is widened in: glibc does not reuse well what is asked for aligned and given back, again and
again, and a process grew by tens of megabytes."""


def digest(local: torch.Tensor, *, box: Box | None = None, shape: Sequence[int] | None = None) -> int:
    """The digest of one box of a tensor, in [0, 2**64).

    Args:
        local: The elements of the box, of any strides, on a CPU or a CUDA device.
        box: Where they lie in the whole tensor; None when they are the whole.
        shape: Of the whole tensor.
    """
    return int(partial(local, box=box, shape=shape).item()) & MASK


def partial(local: torch.Tensor, *, box: Box | None = None, shape: Sequence[int] | None = None) -> torch.Tensor:
    """`digest` as an int64 scalar on the tensor's device, not waited for; sums of it wrap as they should."""
    box = box or Box.full(local.shape)
    shape = tuple(shape if shape is not None else local.shape)
    if tuple(local.shape) != box.shape or len(shape) != len(box.shape):
        raise ValueError(
            f"a tensor of shape {tuple(local.shape)} does not fill the box {box} of a tensor of shape {shape}"
        )
    total = torch.zeros((), dtype=torch.int64, device=local.device)
    if not local.numel():
        return total
    if local.dim() < 2:
        local, box, shape = _as_row(local, box, shape)
    row = 0
    weights = _weights_of_rows(box.start[:-1], box.stop[:-1], shape[:-1], local.device)
    for matrix in _matrices(local.detach()):
        total += _of_matrix(matrix, weights[row : row + matrix.shape[0]], box.start[-1] * local.element_size())
        row += matrix.shape[0]
    return total


def combine(digests: Mapping[str, int]) -> int:
    """One number for many tensors, additive as well: each digest times an odd number made of its name."""
    return sum(tensor_key(name) * value for name, value in digests.items()) & MASK


def tensor_key(name: str) -> int:
    """The odd 64-bit weight of a tensor's name in `combine`."""
    return int.from_bytes(sha256(name.encode()).digest()[:8], "little") | 1


def splitmix64(x: torch.Tensor) -> torch.Tensor:
    """The 64-bit mixer of Steele, Lea and Flood on int64 bit patterns."""
    z = x + _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift_right(z, 31)


def row_weights(rows: torch.Tensor) -> torch.Tensor:
    """a(r) for int64 row indices, as int64 bit patterns."""
    return splitmix64(rows) | 1


@lru_cache(maxsize=256)
def column_weights(start: int, stop: int, device: torch.device) -> torch.Tensor:
    """b(c) for the words ``start`` to ``stop`` of a row, as int64 bit patterns."""
    return splitmix64(torch.arange(start, stop, device=device) ^ COLUMN_SALT) | 1


def _of_matrix(matrix: torch.Tensor, weights: torch.Tensor, first_byte: int) -> torch.Tensor:
    if matrix.is_cuda:
        from launcher.bridge.codec.checksum_cuda import weighted_sum

        words, start = _words(matrix, first_byte)
        return weighted_sum(words, weights, column_weights(start, start + words.shape[1], matrix.device))
    total = torch.zeros((), dtype=torch.int64)
    size = matrix.element_size()
    width = min(matrix.shape[1], BLOCK_WORDS)
    height = max(1, BLOCK_WORDS * 4 // (width * size))
    for left in range(0, matrix.shape[1], width):
        for top in range(0, matrix.shape[0], height):
            words, start = _words(matrix[top : top + height, left : left + width], first_byte + left * size)
            columns = column_weights(start, start + words.shape[1], matrix.device)
            total += torch.dot(torch.mv(_widened(words), columns), weights[top : top + height])
    return total


def _widened(words: torch.Tensor) -> torch.Tensor:
    """int32 words of a block as int64, until the next call in this thread."""
    wide: torch.Tensor | None = getattr(_thread, "wide", None)
    if wide is None or wide.numel() < words.numel():
        # Short rows that begin within a word have more words than their bytes fill.
        wide = _thread.wide = torch.empty(max(words.numel(), BLOCK_WORDS), dtype=torch.int64)
    return wide[: words.numel()].view(words.shape).copy_(words)


def _words(block: torch.Tensor, first_byte: int) -> tuple[torch.Tensor, int]:
    """A block as int32 words, and the index of the first; zeros stand for the rest of words that the block cuts."""
    start, ahead = divmod(first_byte, 4)
    nbytes = block.shape[1] * block.element_size()
    aligned = all(n * block.element_size() % 4 == 0 for n in (block.storage_offset(), block.stride(0), block.shape[1]))
    if not ahead and aligned and block.stride(1) == 1:
        return block.view(torch.int32), start
    filled = torch.zeros(block.shape[0], -(-(ahead + nbytes) // 4) * 4, dtype=torch.uint8, device=block.device)
    filled[:, ahead : ahead + nbytes] = block.contiguous().view(torch.uint8)
    return filled.view(torch.int32), start


def _as_row(local: torch.Tensor, box: Box, shape: tuple[int, ...]) -> tuple[torch.Tensor, Box, tuple[int, ...]]:
    start, stop, size = (*box.start, 0)[0], (*box.stop, 1)[0], (*shape, 1)[0]
    return local.reshape(1, -1), Box((0, start), (1, stop)), (1, size)


def _matrices(local: torch.Tensor) -> list[torch.Tensor]:
    # One matrix where the strides allow it; a box out of the middle of a stacked tensor is taken slice by slice.
    if local.dim() == 2:
        return [local]
    try:
        return [local.view(-1, local.shape[-1])]
    except RuntimeError:
        return [matrix for part in local for matrix in _matrices(part)]


def _weights_of_rows(
    start: tuple[int, ...], stop: tuple[int, ...], shape: tuple[int, ...], device: torch.device
) -> torch.Tensor:
    """a(r) of a box's rows."""
    if len(shape) == 1:
        return _weights_of_all_rows(shape[0], device)[start[0] : stop[0]]
    rows = torch.zeros(1, dtype=torch.int64, device=device)
    for first, last, size in zip(start, stop, shape, strict=True):
        rows = (rows[:, None] * size + torch.arange(first, last, device=device)).reshape(-1)
    return row_weights(rows)


@lru_cache(maxsize=64)
def _weights_of_all_rows(rows: int, device: torch.device) -> torch.Tensor:
    """Models have few heights and many boxes, which come again with every version."""
    return row_weights(torch.arange(rows, device=device))


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x

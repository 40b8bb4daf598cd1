"""Copies and sums of a whole message in one kernel launch: a table says where the rows are, and which tile is whose."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from launcher.bridge.codec.spans import Copied, Summed

FIELDS = tl.constexpr(7)
COLUMN_SALT = tl.constexpr(0x5DEECE66D5DEECE6)
"""That of :mod:`launcher.bridge.codec.checksum`."""

BACKGROUND_PROGRAMS = 264
"""Of a sum that goes on beside copies: two for each multiprocessor of an H100, where fewer fall behind NVLink."""

NARROW = 256
"""Rows of no more elements have tiles of their own, of this width."""


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _mixed(x):  # type: ignore[no-untyped-def]
    """splitmix64, made odd; uint64."""
    z = x + 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return (z ^ (z >> 31)) | 1


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _pointer(address, UNIT: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    if UNIT == 8:
        found = address.to(tl.pointer_type(tl.int64))
    elif UNIT == 4:
        found = address.to(tl.pointer_type(tl.int32))
    elif UNIT == 2:
        found = address.to(tl.pointer_type(tl.int16))
    else:
        found = address.to(tl.pointer_type(tl.int8))
    if WIDE:
        found = tl.multiple_of(found, 16)
    return found


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _copy(  # type: ignore[no-untyped-def]
    table,
    tiles,
    message,
    TO_MESSAGE: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    entry = table + tl.load(tiles + 2 * program).to(tl.int64) * FIELDS
    number = tl.load(tiles + 2 * program + 1)
    stride = tl.load(entry + 1)
    rows = tl.load(entry + 2)
    columns = tl.load(entry + 3)
    if WIDE:
        stride = tl.multiple_of(stride, 4)
        columns = tl.multiple_of(columns, 4)
    ours = _pointer(tl.load(entry), UNIT, WIDE)
    theirs = _pointer(message.to(tl.int64) + tl.load(entry + 4), UNIT, WIDE)
    across = ((columns + COLUMNS - 1) // COLUMNS).to(tl.int32)
    top = (number // across).to(tl.int64) * ROWS
    column = (number % across) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    for row in range(top, tl.minimum(top + ROWS, rows)):
        if TO_MESSAGE:
            tl.store(theirs + row * columns + column, tl.load(ours + row * stride + column, mask=inside), mask=inside)
        else:
            tl.store(ours + row * stride + column, tl.load(theirs + row * columns + column, mask=inside), mask=inside)


@triton.jit(do_not_specialize=["count"])  # type: ignore[untyped-decorator, unused-ignore]
def _scatter(addresses, values, count, UNIT: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    address = tl.load(addresses + index, mask=index < count, other=0)
    # Nothing is written to where no span is.
    inside = (index < count) & (address != 0)
    tl.store(_pointer(address, UNIT, False), tl.load(values + index, mask=inside, other=0), mask=inside)


@triton.jit(do_not_specialize=["count"])  # type: ignore[untyped-decorator, unused-ignore]
def _sum(  # type: ignore[no-untyped-def]
    table, tiles, out, count, UNIT: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    # As many programs as there shall be at a time: each takes every so manieth tile.
    for program in range(tl.program_id(0), count, tl.num_programs(0)):
        tl.store(out + program, _sum_of_tile(table, tiles, program, UNIT, WIDE, ROWS, COLUMNS))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _sum_of_tile(  # type: ignore[no-untyped-def]
    table, tiles, program, UNIT: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    entry = table + tl.load(tiles + 2 * program).to(tl.int64) * FIELDS
    number = tl.load(tiles + 2 * program + 1)
    stride = tl.load(entry + 1)
    rows = tl.load(entry + 2)
    columns = tl.load(entry + 3)
    first_row = tl.load(entry + 4)
    first_byte = tl.load(entry + 5)
    key = tl.load(entry + 6)
    if WIDE:
        stride = tl.multiple_of(stride, 4)
        columns = tl.multiple_of(columns, 4)
    ours = _pointer(tl.load(entry), UNIT, WIDE)
    across = ((columns + COLUMNS - 1) // COLUMNS).to(tl.int32)
    top = (number // across).to(tl.int64) * ROWS
    column = (number % across) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    # A weight a = upper * 2**32 + lower, lower with a sign: two products of 32 bits for each word, not one of 64.
    lower_sum = tl.zeros((COLUMNS,), tl.int64)
    upper_sum = tl.zeros((COLUMNS,), tl.int32)
    byte = first_byte + column.to(tl.int64) * UNIT
    place = (byte % 4).to(tl.int32)
    for row in range(top, tl.minimum(top + ROWS, rows)):
        word = tl.load(ours + row * stride + column, mask=inside, other=0).to(tl.int32)
        if UNIT == 2:
            word = tl.where(place == 2, word << 16, word & 0xFFFF)
        if UNIT == 1:
            # The shift keeps the sign of a word's last byte alone.
            word = (word & 0xFF) << (8 * place)
        a = _mixed((first_row + row).to(tl.uint64)).to(tl.int64)
        lower = a.to(tl.int32)
        upper = ((a - lower.to(tl.int64)) >> 32).to(tl.int32)
        lower_sum += word.to(tl.int64) * lower.to(tl.int64)
        upper_sum += word * upper
    b = _mixed((byte // 4).to(tl.uint64) ^ COLUMN_SALT).to(tl.int64)
    total = (lower_sum + (upper_sum.to(tl.int64) << 32)) * b
    return tl.sum(tl.where(inside, total, 0)) * key


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tiles:
    """Entries that one launch can treat alike."""

    table: torch.Tensor
    """int64, shape (entries, FIELDS); lengths in elements of ``unit`` bytes."""

    tiles: torch.Tensor
    """int32, shape (tiles, 2): the entry, and which of its tiles."""

    unit: int
    is_wide: bool
    """Whether loads of 16 bytes are aligned."""

    rows: int
    columns: int

    @property
    def launched_with(self) -> dict[str, int | bool]:
        """The kernels' constants."""
        constants = {"UNIT": self.unit, "WIDE": self.is_wide, "ROWS": self.rows, "COLUMNS": self.columns}
        return {**constants, "num_warps": 1 if self.columns == NARROW else 4}


class CopyTable:
    """Copies between tensors of one GPU and a message."""

    def __init__(self, spans: Sequence[Copied], device: torch.device) -> None:
        self._device = device
        self._groups = _groups(spans, device, rows=8, columns=4096)

    def copy(self, message: torch.Tensor, *, to_message: bool) -> None:
        """Enqueues them.

        Args:
            message: uint8, on the GPU, aligned to 16 bytes.
        """
        with torch.cuda.device(self._device):
            for group in self._groups:
                _copy[(len(group.tiles),)](
                    group.table, group.tiles, message.data_ptr(), TO_MESSAGE=to_message, **group.launched_with
                )


class OverwriteTable:
    """Single words of a message, written to where its segments were unpacked to, in tensors of one GPU."""

    def __init__(self, spans: Sequence[Copied], device: torch.device) -> None:
        self._device = device
        ordered = sorted(spans, key=lambda span: span.offset)
        numbers = [(s.offset, s.offset + s.rows * s.nbytes, s.address, s.stride, s.nbytes) for s in ordered]
        self._spans = torch.tensor(numbers, dtype=torch.int64).view(-1, 5).T.contiguous().to(device)

    def find(self, positions: torch.Tensor, size: int) -> tuple[torch.Tensor, int]:
        """Where words of a message belong.

        Args:
            positions: int64, shape (count,): indices of words of the message.
            size: bytes of a word.

        Returns:
            int64 addresses, shape (count,), 0 for what lies in no span; and how many lie in one.
        """
        starts, ends, addresses, strides, widths = self._spans
        if not starts.numel():
            return torch.zeros_like(positions), 0
        with torch.cuda.device(self._device):
            place = positions * size
            span = (torch.searchsorted(starts, place, right=True) - 1).clamp_(min=0)
            offset = place - starts[span]
            is_inside = (offset >= 0) & (place < ends[span])
            row = offset // widths[span]
            address = addresses[span] + row * strides[span] + offset - row * widths[span]
            return torch.where(is_inside, address, 0), int(is_inside.sum())

    def write(self, addresses: torch.Tensor, values: torch.Tensor) -> None:
        """Enqueues it.

        Args:
            addresses: of :meth:`find`.
            values: shape (count,): the words, as integers of their width.
        """
        count, block = values.numel(), 1024
        with torch.cuda.device(self._device):
            _scatter[(-(-count // block),)](addresses, values, count, UNIT=values.element_size(), BLOCK=block)


class SumTable:
    """The digest of boxes of tensors of one GPU, each times its tensor's key."""

    def __init__(self, spans: Sequence[Summed], device: torch.device) -> None:
        self._device = device
        self._groups = _groups(spans, device, rows=32, columns=2048)

    def sum(self, *, is_background: bool = False) -> torch.Tensor:
        """int64 scalar on the GPU, not waited for.

        Args:
            is_background: leaves memory bandwidth to what goes on beside it, and takes longer.
        """
        most = BACKGROUND_PROGRAMS if is_background else 1 << 30
        with torch.cuda.device(self._device):
            total = torch.zeros((), dtype=torch.int64, device=self._device)
            for group in self._groups:
                out = torch.empty(len(group.tiles), dtype=torch.int64, device=self._device)
                programs = min(len(group.tiles), most)
                _sum[(programs,)](group.table, group.tiles, out, len(group.tiles), **group.launched_with)
                total = out.sum() if len(self._groups) == 1 else total + out.sum()
            return total


def _groups(
    spans: Sequence[Copied] | Sequence[Summed], device: torch.device, *, rows: int, columns: int
) -> list[_Tiles]:
    by_kind: dict[tuple[int, bool, int], list[list[int]]] = defaultdict(list)
    for span in spans:
        is_wide = span.alignment % 16 == 0
        unit = next(size for size in (4, 2, 1) if span.alignment % size == 0)
        width = NARROW if span.nbytes // unit <= NARROW else columns
        numbers = [span.address, span.stride // unit, span.rows, span.nbytes // unit]
        if isinstance(span, Copied):
            numbers += [span.offset, 0, 0]
        else:
            numbers += [span.first_row, span.first_byte, span.key]
        by_kind[unit, is_wide, width].append(numbers)
    return [
        _Tiles(
            table=table.to(device),
            tiles=_tiles(table, rows, width).to(device),
            unit=unit,
            is_wide=is_wide,
            rows=rows,
            columns=width,
        )
        for (unit, is_wide, width), entries in by_kind.items()
        for table in [torch.tensor(entries, dtype=torch.int64)]
    ]


def _tiles(table: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    counts = -(-table[:, 2] // rows) * -(-table[:, 3] // columns)
    entry = torch.repeat_interleave(torch.arange(len(table)), counts)
    first = counts.cumsum(0) - counts
    return torch.stack([entry, torch.arange(len(entry)) - first[entry]], dim=1).int()

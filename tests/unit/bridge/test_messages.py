"""The rows of bytes that a GPU is told to copy and to sum are those of the segments, wherever these lie."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from launcher.bridge.codec.checksum import MASK, column_weights, digest, row_weights
from launcher.bridge.codec.spans import Summed, copied, summed
from launcher.bridge.plan import Box

DTYPES = [torch.bfloat16, torch.float32, torch.uint8, torch.float8_e4m3fn]
shapes = st.lists(st.integers(1, 6), min_size=0, max_size=4).map(tuple)


def noise(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    bits = torch.randint(0, 256, (torch.Size(shape).numel() * dtype.itemsize,), dtype=torch.uint8)
    return bits.view(dtype).view(shape)


def any_box(shape: tuple[int, ...], data: st.DataObject) -> Box:
    start = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    return Box(start, tuple(data.draw(st.integers(s + 1, size)) for s, size in zip(start, shape, strict=True)))


def sum_of(span: Summed) -> int:
    """What a kernel makes of it."""
    total = 0
    for row in range(span.rows):
        data = ctypes.string_at(span.address + row * span.stride, span.nbytes)
        weight = int(row_weights(torch.tensor([span.first_row + row])))
        for j, x in enumerate(data, start=span.first_byte):
            value = x - 256 if j % 4 == 3 and x > 127 else x
            column = int(column_weights(j // 4, j // 4 + 1, torch.device("cpu")))
            total += weight * column * value * 256 ** (j % 4)
    return total * span.key & MASK


@given(shapes, st.sampled_from(DTYPES), st.data())
def test_the_rows_of_a_box_are_its_bytes_in_order(
    shape: tuple[int, ...], dtype: torch.dtype, data: st.DataObject
) -> None:
    tensor = noise(shape, dtype)
    view = tensor[any_box(shape, data).slices()]
    message = bytearray(16 + view.numel() * view.element_size())
    spans = copied(view, 16)
    assert spans is not None
    for span in spans:
        for row in range(span.rows):
            begin = span.offset + row * span.nbytes
            message[begin : begin + span.nbytes] = ctypes.string_at(span.address + row * span.stride, span.nbytes)
    assert bytes(message[16:]) == view.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@given(shapes, st.sampled_from(DTYPES), st.data())
def test_the_rows_of_a_box_have_its_digest(shape: tuple[int, ...], dtype: torch.dtype, data: st.DataObject) -> None:
    tensor, box = noise(shape, dtype), any_box(shape, data)
    spans = summed(tensor[box.slices()], box, shape, (1 << 63) + 5)
    assert spans is not None
    expected = digest(tensor[box.slices()], box=box, shape=shape) * ((1 << 63) + 5) & MASK
    assert sum(map(sum_of, spans)) & MASK == expected


@pytest.mark.parametrize("view", [torch.zeros(4, 6).T, torch.zeros(12)[::2], torch.zeros(2, 3, 4).permute(2, 0, 1)])
def test_elements_that_do_not_follow_each_other_are_left_to_others(view: torch.Tensor) -> None:
    assert copied(view, 0) is None
    assert summed(view, Box.full(view.shape), view.shape, 1) is None


def test_what_is_one_block_of_memory_is_one_span() -> None:
    stacked = torch.zeros(4, 6, 8, dtype=torch.bfloat16)
    assert len(copied(stacked, 0) or ()) == len(summed(stacked, Box.full((4, 6, 8)), (4, 6, 8), 1) or ()) == 1
    columns = stacked[:, :, 2:6]
    assert len(copied(columns, 0) or ()) == 1
    assert [span.first_row for span in summed(stacked[1:, 2:4], Box((1, 2, 0), (4, 4, 8)), (4, 6, 8), 1) or ()] == [
        *(8, 14, 20)
    ]

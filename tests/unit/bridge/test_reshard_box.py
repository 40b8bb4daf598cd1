"""Boxes: partition arithmetic, exact tiling, contiguity."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from launcher.bridge.plan.boxes import Box, chunk, largest_chunk, take_chunks, tiling_problem

shapes = st.lists(st.integers(1, 7), min_size=0, max_size=3).map(tuple)


@st.composite
def partitions(draw: st.DrawFn) -> tuple[Box, list[Box]]:
    """A box and a partition of it, by random guillotine cuts."""
    outer = Box.full(draw(shapes.filter(len)))
    boxes = [outer]
    for _ in range(draw(st.integers(0, 6))):
        box = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        axis = draw(st.integers(0, len(box.start) - 1))
        at = draw(st.integers(box.start[axis], box.stop[axis]))
        boxes += [box.narrow(axis, box.start[axis], at), box.narrow(axis, at, box.stop[axis])]
    return outer, boxes


@given(st.integers(0, 40), st.integers(1, 9))
def test_chunks_are_torchs(size: int, parts: int) -> None:
    ours = [b - a for a, b in (chunk(size, parts, i) for i in range(parts)) if b > a]
    assert ours == [len(c) for c in torch.arange(size).chunk(parts) if len(c)]


@given(partitions())
def test_a_partition_tiles(partition: tuple[Box, list[Box]]) -> None:
    assert tiling_problem(*partition) is None


@given(partitions(), st.data())
def test_any_change_of_a_partition_is_found(partition: tuple[Box, list[Box]], data: st.DataObject) -> None:
    outer, boxes = partition
    boxes = [box for box in boxes if box.volume]
    index = data.draw(st.integers(0, len(boxes) - 1))
    box, axis = boxes[index], data.draw(st.integers(0, len(outer.start) - 1))
    start, stop = box.start[axis], box.stop[axis]
    changed = data.draw(
        st.sampled_from(
            [(start - 1, stop), (start, stop + 1), (start + 1, stop), (start, stop - 1), (start + 1, stop + 1)]
        )
    )
    assert tiling_problem(outer, [*boxes[:index], box.narrow(axis, *changed), *boxes[index + 1 :]])
    assert "written by nobody" in str(tiling_problem(outer, [*boxes[:index], *boxes[index + 1 :]]))
    assert "overlap" in str(tiling_problem(outer, [*boxes, box]))


def test_a_pinwheel_which_no_cut_divides_tiles() -> None:
    wheel = [Box((0, 0), (1, 2)), Box((0, 2), (2, 3)), Box((2, 1), (3, 3)), Box((1, 0), (3, 1)), Box((1, 1), (2, 2))]
    assert tiling_problem(Box.full((3, 3)), wheel) is None
    assert "overlap" in str(tiling_problem(Box.full((3, 3)), [*wheel[:-1], Box((1, 1), (2, 3))]))


@given(shapes.filter(len), st.integers(1, 9), st.lists(st.integers(0, 9)))
def test_chunks_partition_a_box(shape: tuple[int, ...], parts: int, cuts: list[int]) -> None:
    box = Box.full(shape)
    edges = sorted({0, parts, *(min(c, parts) for c in cuts)})
    assert tiling_problem(box, [take_chunks(box, a, b, parts) for a, b in pairwise(edges)]) is None
    assert max(take_chunks(box, i, i + 1, parts).volume for i in range(parts)) <= largest_chunk(box, parts)


@given(partitions())
def test_run_length_is_the_contiguity_in_memory(partition: tuple[Box, list[Box]]) -> None:
    outer, boxes = partition
    memory = torch.arange(outer.volume).view(outer.shape)
    for box in boxes:
        if box.volume:
            offsets = memory[box.slices()].flatten()
            breaks = int((offsets.diff() != 1).sum())
            run = box.run_length(outer.shape)
            assert box.volume % run == 0
            # Runs are maximal for the box's shape; neighbouring runs touch only where an inner dimension is whole.
            assert breaks <= box.volume // run - 1
            assert all(bool((offsets[i : i + run].diff() == 1).all()) for i in range(0, box.volume, run))
            assert (run == box.volume) == (breaks == 0)

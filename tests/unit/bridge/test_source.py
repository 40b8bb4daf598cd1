"""Tensor maps and sources: what is described as data is what torch's own operations make of it, under any sharding."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from launcher.bridge.codec.local import cut_out
from launcher.bridge.plan import Box
from launcher.bridge.plan.boxes import tiling_problem
from launcher.bridge.plan.tensor_map import NEW, TensorMap
from launcher.bridge.trainer.module_state import cuttings, description, shards
from launcher.bridge.trainer.source import WeightSource, rotary_halves, rows
from launcher.common.errors import BridgeError


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


def applied(
    maps: tuple[TensorMap, ...], source: torch.Tensor, shape: tuple[int, ...], parts: int, dim: int
) -> torch.Tensor:
    """The target, from chunks of the source that each are cut on their own."""
    target = torch.full(shape, -1.0)
    boxes = []
    start = 0
    for local in source.chunk(parts, dim):
        held = Box.full(source.shape).narrow(dim, start, start + local.shape[dim])
        start += local.shape[dim]
        for tensor_map in maps:
            cutting = tensor_map.cut(held)
            if cutting is not None:
                target[cutting.box.slices()] = cut_out(local, cutting)
                boxes.append(cutting.box)
    assert tiling_problem(Box.full(shape), boxes) is None
    return target


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 7), st.integers(0, 1))
def test_rotary_pairs_become_halves_wherever_they_are_cut(
    heads: int, half: int, columns: int, parts: int, dim: int
) -> None:
    source = numbered(heads * 2 * half, columns)
    expected = source.view(heads, half, 2, columns).transpose(1, 2).reshape(source.shape)
    maps = rotary_halves(source.shape, heads)
    assert torch.equal(applied(maps, source, tuple(source.shape), parts, dim), expected)


@given(st.permutations([0, 1, 2]), st.integers(1, 4), st.integers(0, 2))
def test_dimensions_in_another_order(axes: list[int], parts: int, dim: int) -> None:
    source = numbered(4, 3, 5)
    expected = source.permute(*axes)
    tensor_map = TensorMap(start=(0, 0, 0), shape=(4, 3, 5), target=(0, 0, 0), axes=tuple(axes))
    assert torch.equal(applied((tensor_map,), source, tuple(expected.shape), parts, dim), expected)


def test_a_dimension_goes_and_one_comes() -> None:
    source = numbered(3, 4, 2)
    second = TensorMap(start=(1, 0, 0), shape=(1, 4, 2), target=(0, 0), axes=(2, 1))
    assert torch.equal(applied((second,), source, (2, 4), 2, 1), source[1].T)
    stacked = tuple(TensorMap(start=(0, 2 * i), shape=(3, 2), target=(i, 0, 0), axes=(NEW, 0, 1)) for i in range(2))
    assert torch.equal(applied(stacked, numbered(3, 4), (2, 3, 2), 3, 0), torch.stack(numbered(3, 4).chunk(2, 1)))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.data())
def test_a_flat_partition_is_the_boxes_that_it_covers(shape: list[int], data: st.DataObject) -> None:
    whole = numbered(*shape)
    size = whole.numel()
    edges = sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=4))})
    found = torch.full(tuple(shape), -1.0)
    for begin, end in pairwise(edges):
        source = WeightSource()
        held = whole.view(-1)[begin:end]
        padded = torch.cat([held, torch.full((3,), -2.0)]) if end == size else held
        source.add_flat("w", padded, begin=begin, shape=shape)
        found_weights = source.weights()
        cut = cuttings(description(found_weights), 0)
        for box, piece in shards(found_weights, cut, {"w"})["w"].pieces if found_weights else ():
            assert (found[box.slices()] == -1.0).all()
            found[box.slices()] = piece
    assert torch.equal(found, whole)


def test_one_tensor_under_two_names_is_sent_once_and_one_that_is_turned_is_not() -> None:
    tensor, source = numbered(4, 2), WeightSource()
    source.add("embed", tensor)
    source.add("head", tensor)
    source.add("turned", tensor, maps=rows((4, 2), [(0, 2, 2), (2, 2, 0)]))
    assert [(w.name, w.alias_of) for w in source.weights()] == [("embed", None), ("head", "embed"), ("turned", None)]


def test_numbers_that_do_not_fit_are_refused_with_the_name() -> None:
    source = WeightSource()
    with pytest.raises(BridgeError, match=r"`w`: \(4, 2\) elements are not \[2:6, 0:2\] of \(5, 2\)"):
        source.add("w", numbered(4, 2), start=(2, 0), shape=(5, 2))
    with pytest.raises(BridgeError, match=r"`w`: rank 7 is none of \[0, 1\]"):
        source.add("w", numbered(4, 2), shard=(0, (0, 1), 7), shape=(8, 2))
    with pytest.raises(BridgeError, match=r"lies outside of the checkpoint's \(3, 2\)"):
        source.add("w", numbered(4, 2), maps=rows((4, 2), [(0, 4, 0)]), target_shape=(3, 2))
    with pytest.raises(BridgeError, match="5 rows are not 2 heads"):
        rotary_halves((5, 2), 2)

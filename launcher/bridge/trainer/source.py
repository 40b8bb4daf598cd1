"""Weights under names, in orders and on ranks that are not the checkpoint's, described as data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import torch
from torch.distributed.tensor import DTensor

from launcher.bridge.plan.boxes import Box, chunk, describe
from launcher.bridge.plan.tensor_map import TensorMap
from launcher.bridge.trainer.module_state import Compute, Weight, WeightPart, kept
from launcher.common.errors import BridgeError


class WeightSource:
    """What one trainer rank holds of a checkpoint's tensors: for :meth:`launcher.bridge.Bridge.publish` in place of a
    module.

    Each rank describes its own tensors; together they must make up each tensor once, or several times alike. Nothing is
    copied or gathered: what is added is kept as a view, and its values are read when a version is published. So one
    source serves all versions as long as the trainer's tensors stay where they are.
    """

    def __init__(self) -> None:
        self._weights: dict[str, tuple[tuple[int, ...], list[WeightPart]]] = {}

    def add(
        self,
        name: str,
        tensor: torch.Tensor,
        *,
        start: Sequence[int] | None = None,
        shard: tuple[int, Sequence[int], int] | None = None,
        shape: Sequence[int] | None = None,
        maps: Iterable[TensorMap] | None = None,
        target_shape: Sequence[int] | None = None,
        compute: Compute | None = None,
    ) -> None:
        """Adds what this rank holds of one tensor, or a part of it; a name may be added several times.

        Args:
            name: the checkpoint's.
            tensor: a DTensor, or what this rank holds; any floating type, on any device, of any strides.
            start: where ``tensor`` begins in the whole tensor; the origin if None.
            shard: in place of ``start``: ``tensor`` is this rank's chunk, as ``torch.chunk`` makes it: of which
                dimension, the ranks that share that in order, and this rank.
            shape: of the whole tensor, where ``tensor`` is a part of it.
            maps: what of the whole tensor is what of the checkpoint's, where they are not the same.
            target_shape: of the checkpoint's tensor, with ``maps``.
            compute: given ``tensor`` (its local part) and the box that it is of the whole one, returns what is sent in
                its place, of the same shape and type. It is called while a version is sent, in any thread, perhaps
                more than once; two results are kept at a time. It makes no collective call.

        Raises:
            BridgeError: the numbers do not fit each other.
        """
        whole = tuple(tensor.shape if shape is None else shape)
        box = None
        if not isinstance(tensor, DTensor) and (start is not None or shard is not None):
            box = _chunk(name, whole, *shard) if shard is not None else _placed(tuple(start or ()), tensor.shape)
            if box.shape != tuple(tensor.shape) or not Box.full(whole).contains(box):
                raise BridgeError(f"`{name}`: {tuple(tensor.shape)} elements are not {describe(box)} of {whole}.")
        cut = None if maps is None else tuple(maps)
        target = whole if target_shape is None else tuple(target_shape)
        for tensor_map in cut or ():
            if not Box.full(target).contains(tensor_map.box):
                raise BridgeError(f"`{name}`: {describe(tensor_map.box)} lies outside of the checkpoint's {target}.")
        known, parts = self._weights.setdefault(name, (target, []))
        if known != target:
            raise BridgeError(f"`{name}` was added with the shape {known} before, and now with {target}.")
        parts.append(WeightPart(tensor=tensor, shape=whole, box=box, maps=cut, compute=compute))

    def add_flat(self, name: str, flat: torch.Tensor, *, begin: int, shape: Sequence[int]) -> None:
        """Adds what this rank holds of a tensor that is partitioned without regard to its dimensions (ZeRO-3, FSDP1).

        Args:
            name: the checkpoint's.
            flat: 1-D: some elements of the tensor in row-major order, and perhaps padding behind the last one.
            begin: index of the first.
            shape: of the whole tensor.
        """
        whole = tuple(shape)
        end = min(begin + flat.numel(), prod(whole))
        for box in _boxes_of_range(whole, begin, end):
            first = sum(start * prod(whole[axis + 1 :]) for axis, start in enumerate(box.start))
            piece = flat[first - begin : first - begin + box.volume].view(box.shape)
            self.add(name, piece, start=box.start, shape=whole)

    def weights(self, exclude: Sequence[str] = ()) -> list[Weight]:
        """What was added, sorted by name; tensors that are one and the same in memory are sent once.

        Args:
            exclude: patterns of names that are left out.
        """
        found: list[Weight] = []
        owners: dict[object, str] = {}
        for name in kept(sorted(self._weights), exclude):
            shape, parts = self._weights[name]
            owner = owners.setdefault(tuple((id(part.tensor), part.maps, part.compute) for part in parts), name)
            alias = None if owner == name else owner
            found.append(Weight(name=name, shape=shape, parts=tuple(parts), alias_of=alias))
        return found


def rows(
    shape: Sequence[int], runs: Iterable[tuple[int, int, int] | tuple[int, int, int, int]]
) -> tuple[TensorMap, ...]:
    """Maps that take runs of rows (dimension 0) somewhere else.

    Args:
        shape: of the whole tensor.
        runs: of rows.
    """
    rest = tuple(shape[1:])
    zeros, ones = (0,) * len(rest), (1,) * len(rest)
    return tuple(
        TensorMap(
            start=(first, *zeros),
            shape=(count, *rest),
            target=(target, *zeros),
            step=(step[0], *ones) if step else (),
        )
        for first, count, target, *step in runs
    )


def rotary_halves(shape: Sequence[int], heads: int) -> tuple[TensorMap, ...]:
    """From interleaved pairs (as Meta's and torchtitan's Llama keep query and key) to the halves of Hugging Face.

    Args:
        shape: of the query's or the key's weight or bias: rows are heads x size of a head.
        heads: query heads, or key/value heads.

    Raises:
        BridgeError: the rows are not that many heads of an even size.
    """
    size, rest = divmod(shape[0], heads)
    if rest or size % 2:
        raise BridgeError(f"{shape[0]} rows are not {heads} heads of an even size.")
    half = size // 2
    return rows(
        shape, [(head * size + part, half, head * size + part * half, 2) for head in range(heads) for part in (0, 1)]
    )


def grouped_qkv(
    rows_of: int, which: str, *, per_group: int, size: int, first_group: int = 0, interleaved: bool = False
) -> list[tuple[int, int, int, int]]:
    """Runs for :func:`rows` that take query, key or value out of a tensor that has them by key/value heads.

    For each of those it has ``per_group`` query heads, then the key, then the value: as Megatron-Core, and torchtitan
    where it fuses them, keep them.

    Args:
        rows_of: rows of the fused tensor.
        which: ``q``, ``k`` or ``v``.
        per_group: query heads of a group.
        size: of a head.
        first_group: of the fused tensor, among all groups of the model.
        interleaved: rotary pairs are neighbours, as for :func:`rotary_halves`.
    """
    at, count = {"q": (0, per_group), "k": (per_group, 1), "v": (per_group + 1, 1)}[which]
    parts, step = (2, 2) if interleaved and which != "v" else (1, 1)
    return [
        (
            (group * (per_group + 2) + at + head) * size + part,
            size // parts,
            ((first_group + group) * count + head) * size + part * size // 2,
            step,
        )
        for group in range(rows_of // ((per_group + 2) * size))
        for head in range(count)
        for part in range(parts)
    ]


def _placed(start: tuple[int, ...], shape: Sequence[int]) -> Box:
    return Box(start, tuple(a + size for a, size in zip(start, shape, strict=True)))


def _chunk(name: str, whole: tuple[int, ...], dim: int, ranks: Sequence[int], rank: int) -> Box:
    if rank not in ranks:
        raise BridgeError(f"`{name}`: rank {rank} is none of {list(ranks)}, which share the tensor.")
    return Box.full(whole).narrow(dim, *chunk(whole[dim], len(ranks), list(ranks).index(rank)))


def _boxes_of_range(shape: tuple[int, ...], begin: int, end: int) -> list[Box]:
    """Row-major elements as few boxes: the rest of a row, whole rows, the beginning of a row; and so in each row."""
    if begin >= end:
        return []
    if len(shape) <= 1:
        return [Box((begin,), (end,))] if shape else [Box((), ())]
    size = prod(shape[1:])
    first, last = -(-begin // size), end // size
    found = []
    if first > last:  # Within one row.
        return [_in_row(last, box) for box in _boxes_of_range(shape[1:], begin - last * size, end - last * size)]
    if begin < first * size:
        found += [_in_row(first - 1, box) for box in _boxes_of_range(shape[1:], begin - (first - 1) * size, size)]
    if first < last:
        found.append(Box.full(shape).narrow(0, first, last))
    if last * size < end:
        found += [_in_row(last, box) for box in _boxes_of_range(shape[1:], 0, end - last * size)]
    return found


def _in_row(row: int, box: Box) -> Box:
    return Box((row, *box.start), (row + 1, *box.stop))

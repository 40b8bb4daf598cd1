"""What each rank of an engine requires under tensor and expert parallelism, without an engine: for models on paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.bridge.plan import Box, Parameter, Region, TensorSpec
from launcher.bridge.plan.boxes import chunk
from launcher.common.errors import BridgeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One rank's place in a parallel group: tensor parallel, or expert parallel."""

    rank: int
    size: int

    def of(self, extent: int, what: str) -> tuple[int, int]:
        """Start and stop of this rank's equal part.

        Raises:
            BridgeError: ``extent`` does not divide by the size of the group.
        """
        if extent % self.size:
            raise BridgeError(f"`{what}` has {extent} rows or columns, which {self.size} ranks cannot share equally.")
        step = extent // self.size
        return self.rank * step, (self.rank + 1) * step


WHOLE = Slice(rank=0, size=1)


def replicated(name: str, source: TensorSpec, *, dtype: str | None = None) -> Parameter:
    """The same whole tensor on every rank: norms, routers, biases of row-parallel layers."""
    return sharded(name, source, None, WHOLE, dtype=dtype)


def sharded(name: str, source: TensorSpec, dim: int | None, tp: Slice, *, dtype: str | None = None) -> Parameter:
    """One tensor cut along ``dim``: 0 for column-parallel weights and biases, 1 for row-parallel weights."""
    return fused(name, [source], dim, tp, dtype=dtype)


def fused(
    name: str, sources: Sequence[TensorSpec], dim: int | None, tp: Slice, *, dtype: str | None = None
) -> Parameter:
    """Several tensors cut along ``dim`` and stacked along dimension 0: gate_up, or fused latent projections."""
    boxes = []
    for spec in sources:
        box = Box.full(spec.shape)
        boxes.append(box if dim is None else box.narrow(dim, *tp.of(spec.shape[dim], spec.name)))
    return _stack(name, list(zip(sources, boxes, strict=True)), dtype)


def qkv(
    name: str,
    q: TensorSpec,
    k: TensorSpec,
    v: TensorSpec,
    *,
    heads: int,
    kv_heads: int,
    tp: Slice,
    dtype: str | None = None,
) -> Parameter:
    """Fused query, key and value weight or bias; with more ranks than key/value heads, neighbours share a head.

    Raises:
        BridgeError: The heads cannot be divided over the ranks.
    """
    if heads % tp.size or (kv_heads % tp.size and tp.size % kv_heads):
        raise BridgeError(f"`{name}`: {heads} heads and {kv_heads} key/value heads do not divide over {tp.size} ranks.")
    copies = max(1, tp.size // kv_heads)
    kv = Slice(rank=tp.rank // copies, size=tp.size // copies)
    boxes = [
        (s, Box.full(s.shape).narrow(0, *group.of(s.shape[0], s.name))) for s, group in ((q, tp), (k, kv), (v, kv))
    ]
    return _stack(name, boxes, dtype)


def vocabulary(name: str, source: TensorSpec, *, padded_to: int, tp: Slice, dtype: str | None = None) -> Parameter:
    """Embedding or output head cut along a vocabulary that is padded to ``padded_to`` rows before it is divided."""
    start, stop = tp.of(padded_to, name)
    real = min(max(start, source.shape[0]), stop)
    shape = (stop - start, *source.shape[1:])
    regions = []
    if real > start:
        target = Box.full(shape).narrow(0, 0, real - start)
        regions.append(Region(source=source.name, box=Box.full(source.shape).narrow(0, start, real), target=target))
    padding = (Box.full(shape).narrow(0, real - start, stop - start),) if stop > real else ()
    return Parameter(name=name, shape=shape, dtype=dtype or source.dtype, regions=tuple(regions), padding=padding)


def local_experts(count: int, ep: Slice) -> range:
    """Experts of one expert-parallel rank: contiguous, the first ranks one more when they do not divide."""
    base, more = divmod(count, ep.size)
    start = ep.rank * base + min(ep.rank, more)
    return range(start, start + base + (ep.rank < more))


def experts(
    name: str,
    sources: Sequence[Sequence[TensorSpec]],
    *,
    dim: int,
    tp: Slice = WHOLE,
    ep: Slice = WHOLE,
    dtype: str | None = None,
) -> Parameter:
    """Stacked expert weights from one tensor per expert.

    Args:
        name: ``w13_weight`` or ``w2_weight``; shape (local experts, stacked rows, columns).
        sources: Per expert, what is stacked along its rows: ``[gate, up]`` for w13, ``[down]`` for w2.
        dim: Dimension that tensor parallelism cuts: 0 for w13, 1 for w2.
    """
    first, regions = None, []
    for slot, expert in enumerate(local_experts(len(sources), ep)):
        whole = fused(name, sources[expert], dim, tp, dtype=dtype)
        first = first or whole
        for region in whole.regions:
            target = Box((slot, *region.target.start), (slot + 1, *region.target.stop))
            regions.append(Region(source=region.source, box=region.box, target=target))
    if first is None:
        raise BridgeError(f"`{name}`: rank {ep.rank} of {ep.size} has none of {len(sources)} experts.")
    shape = (len(local_experts(len(sources), ep)), *first.shape)
    return Parameter(name=name, shape=shape, dtype=first.dtype, regions=tuple(regions))


def stacked_experts(
    name: str,
    source: TensorSpec,
    *,
    dim: int,
    tp: Slice = WHOLE,
    ep: Slice = WHOLE,
    halves: int = 1,
    dtype: str | None = None,
) -> Parameter:
    """Stacked expert weights from one tensor (experts, rows, columns) that the trainer keeps stacked as well.

    ``halves`` is 2 for a tensor whose rows are gate then up: tensor parallelism along the rows cuts each half.
    """
    mine = local_experts(source.shape[0], ep)
    whole = Box.full(source.shape).narrow(0, mine.start, mine.stop)
    axis, extent = dim + 1, source.shape[dim + 1] // (halves if dim == 0 else 1)
    step = extent // tp.size
    regions = []
    for half in range(source.shape[axis] // extent):
        start, stop = tp.of(extent, source.name)
        box = whole.narrow(axis, half * extent + start, half * extent + stop)
        target = Box.full(box.shape).narrow(axis, half * step, (half + 1) * step)
        regions.append(Region(source=source.name, box=box, target=target))
    shape = list(whole.shape)
    shape[axis] = step * len(regions)
    return Parameter(name=name, shape=tuple(shape), dtype=dtype or source.dtype, regions=tuple(regions))


def dense_chunk(name: str, source: TensorSpec, dim: int, tp: Slice, *, dtype: str | None = None) -> Parameter:
    """One tensor cut along ``dim`` as ``torch.chunk`` does, uneven, possibly empty: what a DTensor engine holds."""
    box = Box.full(source.shape).narrow(dim, *chunk(source.shape[dim], tp.size, tp.rank))
    regions = [(source, box)] if box.volume else []
    if not regions:
        return Parameter(name=name, shape=box.shape, dtype=dtype or source.dtype, regions=())
    return _stack(name, regions, dtype)


def _stack(name: str, boxes: Sequence[tuple[TensorSpec, Box]], dtype: str | None) -> Parameter:
    rows, regions = 0, []
    for spec, box in boxes:
        target = Box.full(box.shape)
        if box.shape:
            target = Box((rows, *target.start[1:]), (rows + box.shape[0], *target.stop[1:]))
            rows += box.shape[0]
        regions.append(Region(source=spec.name, box=box, target=target))
    shape = boxes[0][1].shape
    return Parameter(
        name=name, shape=(rows, *shape[1:]) if shape else (), dtype=dtype or boxes[0][0].dtype, regions=tuple(regions)
    )

"""A weight map in the terms of the reshard plan: what a worker requires, and in which tensors it receives it."""

from __future__ import annotations

from launcher.bridge.plan import Box, Parameter, Region
from launcher.bridge.weightmap.coverage import target_box
from launcher.bridge.weightmap.model import BoundParameter, CopyOp, LoadMethod, WeightMap
from launcher.bridge.weightmap.strided import Dim, StridedLayout, locate


def requirements(weight_map: WeightMap) -> tuple[Parameter, ...]:
    """What the worker receives, by the name of the tensor that receives it.

    A parameter that is filled by boxes is received in its own shape and under its own name. What is not (values are
    permuted, or go through the loader) is received as the box that it is in the trainer, under a name of its own, and
    put in place when the version is written.
    """
    found: list[Parameter] = []
    for bound in weight_map.parameters:
        boxes = regions(bound)
        if boxes is not None:
            found.append(
                Parameter(name=bound.name, shape=bound.shape, dtype=bound.dtype, regions=boxes, padding=bound.padding)
            )
        else:
            found += [_separate(name, copy, bound) for name, copy in separate_copies(bound)]
    owners = weight_map.owners()
    for name in weight_map.reloaded:
        entry = owners[name]
        whole = Box.full(entry.shape)
        found.append(
            Parameter(
                name=reloaded_name(name),
                shape=entry.shape,
                dtype=entry.dtype,
                regions=(Region(source=name, box=whole, target=whole),),
            )
        )
    return tuple(found)


def regions(bound: BoundParameter) -> tuple[Region, ...] | None:
    """The copies of a parameter as boxes on both sides; None when one of them is more than that."""
    if bound.method not in (LoadMethod.TRACED, LoadMethod.PACKED):
        return None
    layout = StridedLayout(bound.shape, bound.strides)
    found = [_region(copy, layout) for copy in bound.copies]
    return tuple(region for region in found if region is not None) if all(found) else None


def separate_copies(bound: BoundParameter) -> list[tuple[str, CopyOp]]:
    """Names for what is received of a parameter that is not received whole; nothing for other methods than copies."""
    return [(f"{bound.name}#{i}", copy) for i, copy in enumerate(bound.copies)]


def reloaded_name(source: str) -> str:
    """The name under which a whole trainer tensor is received."""
    return f"@{source}"


def _separate(name: str, copy: CopyOp, bound: BoundParameter) -> Parameter:
    box = copy.source_box
    region = Region(source=copy.source_name, box=box, target=Box.full(box.shape))
    return Parameter(name=name, shape=box.shape, dtype=bound.dtype, regions=(region,))


def _region(copy: CopyOp, layout: StridedLayout) -> Region | None:
    if copy.shape != copy.source_box.shape:
        return None
    target = target_box(copy, layout)
    dims = [Dim(count, stride, axis) for axis, (count, stride) in enumerate(zip(copy.shape, copy.strides, strict=True))]
    located = locate(copy.offset, dims, layout)
    if target is None or located is None:
        return None
    # A dimension that was split or merged on the way shows as several steps; its stride to the other side then is not
    # the number of the dimension any more, so look at the counts as well.
    order: list[int] = []
    for steps in located.steps:
        if len(steps) > 1:
            return None
        for dim in steps:
            axis = next((a for a, d in enumerate(dims) if d.other == dim.other and d.count == dim.count), None)
            if axis is None:
                return None
            order.append(axis)
    if order == sorted(order):
        return Region(source=copy.source_name, box=copy.source_box, target=target)
    short = [axis for axis, dim in enumerate(dims) if dim.count == 1]
    return Region(source=copy.source_name, box=copy.source_box, target=target, axes=(*order, *short))

"""A binding in the terms of the reshard plan: what this worker needs, and in which tensors it wants to receive it."""

from __future__ import annotations

from launcher.bridge.plan import Box, Parameter, Part
from launcher.bridge.weightmap.coverage import target_box
from launcher.bridge.weightmap.model import Binding, Bound, Copy, Way
from launcher.bridge.weightmap.strided import Dim, Layout, locate


def needs(binding: Binding) -> tuple[Parameter, ...]:
    """What the worker receives, by the name of the tensor that receives it.

    A parameter that is filled by boxes is received in its own shape and under its own name. What is not (values are
    permuted, or go through the loader) is received as the box that it is in the trainer, under a name of its own, and
    put in place when the version is written.
    """
    found: list[Parameter] = []
    for bound in binding.parameters:
        parts = direct(bound)
        if parts is not None:
            found.append(
                Parameter(name=bound.name, shape=bound.shape, dtype=bound.dtype, parts=parts, padding=bound.padding)
            )
        else:
            found += [_aside(name, copy, bound) for name, copy in asides(bound)]
    owners = binding.owners()
    for name in binding.staged:
        entry = owners[name]
        whole = Box.full(entry.shape)
        found.append(
            Parameter(
                name=staged_name(name),
                shape=entry.shape,
                dtype=entry.dtype,
                parts=(Part(source=name, box=whole, target=whole),),
            )
        )
    return tuple(found)


def direct(bound: Bound) -> tuple[Part, ...] | None:
    """The copies of a parameter as boxes on both sides; None when one of them is more than that."""
    if bound.way not in (Way.TRACED, Way.PACKED):
        return None
    layout = Layout(bound.shape, bound.strides)
    parts = [_part(copy, layout) for copy in bound.copies]
    return tuple(part for part in parts if part is not None) if all(parts) else None


def asides(bound: Bound) -> list[tuple[str, Copy]]:
    """Names for what is received of a parameter that is not received directly; nothing for other ways than copies."""
    return [(f"{bound.name}#{i}", copy) for i, copy in enumerate(bound.copies)]


def staged_name(source: str) -> str:
    """The name under which a whole trainer tensor is received."""
    return f"@{source}"


def _aside(name: str, copy: Copy, bound: Bound) -> Parameter:
    box = copy.source_box
    part = Part(source=copy.source_name, box=box, target=Box.full(box.shape))
    return Parameter(name=name, shape=box.shape, dtype=bound.dtype, parts=(part,))


def _part(copy: Copy, layout: Layout) -> Part | None:
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
        return Part(source=copy.source_name, box=copy.source_box, target=target)
    short = [axis for axis, dim in enumerate(dims) if dim.count == 1]
    return Part(source=copy.source_name, box=copy.source_box, target=target, axes=(*order, *short))

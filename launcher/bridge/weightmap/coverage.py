"""The exact account of one parameter: every element written once, or padding, or missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from launcher.bridge.plan import Box
from launcher.bridge.plan.boxes import describe, tiling_problem
from launcher.bridge.weightmap.model import CopyOp
from launcher.bridge.weightmap.strided import Dim, StridedLayout, locate


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How the events of one parameter cover it."""

    copies: tuple[CopyOp, ...]
    padding: tuple[Box, ...]
    missing: tuple[Box, ...]
    """Regions that are neither copied to nor filled."""

    problem: str = ""
    """Why it cannot be replayed; empty if it can."""


def cover(layout: StridedLayout, events: Iterable[CopyOp | Box]) -> Coverage:
    """Checks what was seen of a parameter of this layout; exact for every element."""
    copies: dict[CopyOp, Box] = {}
    fills: list[Box] = []
    for event in events:
        if isinstance(event, Box):
            if any(event.intersect(box) for box in copies.values()):
                return _problem(f"{describe(event)} is filled with a constant after it was copied to")
            fills.append(event)
            continue
        box = target_box(event, layout)
        if box is None:
            return _problem("a copy goes to a region that is no box")
        # The same copy again writes the same: two names of one tied tensor.
        copies[event] = box
    whole = Box.full(layout.shape)
    targets = sorted(copies.values(), key=lambda box: box.start)
    rest = remainder(whole, targets)
    if sum(box.volume for box in rest) + sum(box.volume for box in targets) != prod(layout.shape):
        return _problem(tiling_problem(whole, targets) or "its copies overlap")
    missing = [view for box in rest for view in remainder(box, fills)]
    padding = [view for box in rest for view in remainder(box, missing)]
    return Coverage(copies=tuple(copies), padding=tuple(padding), missing=tuple(missing))


def target_box(copy: CopyOp, layout: StridedLayout) -> Box | None:
    """The box of the parameter that a copy fills, each element once; None when it is no box."""
    dims = [Dim(count, stride, 0) for count, stride in zip(copy.shape, copy.strides, strict=True)]
    if any(dim.count > 1 and not dim.stride for dim in dims):
        return None
    located = locate(copy.offset, dims, layout)
    return located.box() if located else None


def remainder(whole: Box, taken: Sequence[Box]) -> list[Box]:
    """What is left of a box without others, as disjoint boxes."""
    left = [whole] if whole.volume else []
    for box in taken:
        # Most of many boxes lie apart: only what meets is cut.
        met = [(view, view.intersect(box)) for view in left]
        if not any(common for _, common in met):
            continue
        left = [part for view, common in met for part in (_without(view, common) if common else [view])]
    return left


def _without(whole: Box, hole: Box) -> list[Box]:
    parts = []
    for axis in range(len(whole.start)):
        if whole.start[axis] < hole.start[axis]:
            parts.append(whole.narrow(axis, whole.start[axis], hole.start[axis]))
        if hole.stop[axis] < whole.stop[axis]:
            parts.append(whole.narrow(axis, hole.stop[axis], whole.stop[axis]))
        whole = whole.narrow(axis, hole.start[axis], hole.stop[axis])
    return parts


def _problem(words: str) -> Coverage:
    return Coverage(copies=(), padding=(), missing=(), problem=words)

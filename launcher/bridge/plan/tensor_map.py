"""Elements of one tensor that are elements of another: how names and orders of two sides meet, as data."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.bridge.plan.boxes import Box

NEW = -1
"""In :attr:`TensorMap.axes`: a dimension of one element that the source does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorMap:
    """Every ``step``-th element of a source from ``start`` on is, with dimensions in another order, a box of a target.

    The element ``start + step * i`` of the source is the element ``target + j`` of the target, where ``j`` has the
    dimensions of ``i`` in the order of ``axes``. A row permutation takes one map for each run of rows; a split, one for
    each target; a merge, one for each source.
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]
    """Elements per dimension of the source."""

    target: tuple[int, ...]
    """The first element in the target."""

    step: tuple[int, ...] = ()
    """Per dimension of the source; 1 everywhere if empty."""

    axes: tuple[int, ...] = ()
    """For each dimension of the target that of the source, or :data:`NEW`; the same order if empty. Dimensions that it
    leaves out have one element."""

    @property
    def _order(self) -> tuple[int, ...]:
        return self.axes or tuple(range(len(self.start)))

    @property
    def _steps(self) -> tuple[int, ...]:
        return self.step or (1,) * len(self.start)

    @property
    def box(self) -> Box:
        """What it is in the target."""
        return self._at((0,) * len(self.shape), self.shape)

    def cut(self, held: Box) -> Cutting | None:
        """What of it lies in a box of the source; None if nothing does."""
        first, last, slices = [], [], []
        for start, count, step, a, b in zip(self.start, self.shape, self._steps, held.start, held.stop, strict=True):
            low, high = max(0, -(-(a - start) // step)), min(count, -(-(b - start) // step))
            if low >= high:
                return None
            first.append(low)
            last.append(high)
            begin = start + low * step - a
            slices.append(slice(begin, begin + (high - low - 1) * step + 1, step))
        return Cutting(slices=tuple(slices), axes=self.axes, box=self._at(tuple(first), tuple(last)))

    def _at(self, first: tuple[int, ...], last: tuple[int, ...]) -> Box:
        lows = [0 if axis == NEW else first[axis] for axis in self._order]
        highs = [1 if axis == NEW else last[axis] for axis in self._order]
        return Box(
            tuple(t + low for t, low in zip(self.target, lows, strict=True)),
            tuple(t + high for t, high in zip(self.target, highs, strict=True)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutting:
    """A part of a rank's local tensor, and the box that it is in a target."""

    slices: tuple[slice, ...]
    """Of the local tensor."""

    axes: tuple[int, ...]
    """As :attr:`TensorMap.axes`."""

    box: Box

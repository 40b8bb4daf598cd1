"""What each engine rank requires: its parameters as boxes of the trainer's tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from launcher.bridge.plan.boxes import Box
from launcher.common.errors import BridgeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A box of one trainer tensor and where it goes inside one engine parameter.

    Dimensions longer than 1 correspond in order (after ``axes``); dimensions of length 1 may come and go, which is how
    one expert's matrix becomes a slice of a stacked parameter.
    """

    source: str
    box: Box
    """In coordinates of the whole trainer tensor."""

    target: Box
    """In coordinates of the engine rank's own parameter."""

    axes: tuple[int, ...] | None = None
    """Order in which the trainer's dimensions appear in the parameter, where it is stored transposed."""

    def locate(self, box: Box) -> Box:
        """Where a box inside this region's goes, in coordinates of the parameter.

        Raises:
            BridgeError: The two boxes of this region do not have the same shape but for dimensions of length 1.
        """
        start, stop = list(self.target.start), list(self.target.stop)
        for here, there in _corresponding(self.box.shape, self.target.shape, self.axes):
            base = self.target.start[there] - self.box.start[here]
            start[there], stop[there] = box.start[here] + base, box.stop[here] + base
        return Box(tuple(start), tuple(stop))


@lru_cache(maxsize=4096)
def _corresponding(
    shape: tuple[int, ...], target: tuple[int, ...], axes: tuple[int, ...] | None
) -> list[tuple[int, int]]:
    long = [d for d in axes or range(len(shape)) if shape[d] != 1]
    there = [d for d, size in enumerate(target) if size != 1]
    if [shape[d] for d in long] != [target[d] for d in there]:
        raise BridgeError(
            f"A box of shape {shape} does not fit in a region of shape {target} of an engine's parameter."
        )
    return list(zip(long, there, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of one engine rank and everything that is written into it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    regions: tuple[Region, ...]
    padding: tuple[Box, ...] = ()
    """Regions that no trainer tensor feeds (a padded vocabulary); they are never written."""

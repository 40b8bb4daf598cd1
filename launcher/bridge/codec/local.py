"""What a trainer rank holds of a tensor: boxes of it, each a view of memory that the trainer has anyway."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from launcher.bridge.plan.boxes import Box, describe
from launcher.bridge.plan.tensor_map import NEW, Cutting
from launcher.common.errors import BridgeError


class Computed:
    """Elements that are computed when they are sent, such as a weight with an adapter merged into it.

    Args:
        compute: gives them; it may be called several times for one version.
        device: where they will be.
    """

    def __init__(self, compute: Callable[[], torch.Tensor], device: torch.device) -> None:
        self.device = device
        self._compute = compute

    def value(self) -> torch.Tensor:
        """The elements. The last two that any thread computed are kept, which is the memory that this takes."""
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        with _lock:
            for owner, at, value in _latest:
                if owner is self and at == stream:
                    return value
        with torch.no_grad():
            value = self._compute()
        with _lock:
            _latest.append((self, stream, value))
        return value


_lock = threading.Lock()
_latest: deque[tuple[Computed, Any, torch.Tensor]] = deque(maxlen=2)


def value_of(tensor: torch.Tensor | Computed) -> torch.Tensor:
    """Elements that lie in memory, or are computed now."""
    return tensor.value() if isinstance(tensor, Computed) else tensor


Layout = tuple[tuple[int, torch.dtype, tuple[int, ...]], ...]
"""Where tensors are, and how they lie: equal as long as a table of their addresses is right."""


@dataclass(frozen=True)
class LocalTensor:
    """Boxes of one tensor, which do not meet, with their elements. All of one type and device."""

    pieces: tuple[tuple[Box, torch.Tensor | Computed], ...]

    @classmethod
    def whole(cls, tensor: torch.Tensor) -> LocalTensor:
        """A tensor that lies here as a whole."""
        return cls(((Box.full(tensor.shape), tensor),))

    def at(self, box: Box) -> torch.Tensor:
        """The elements of a box that lies in one of the pieces.

        Raises:
            BridgeError: it does not.
        """
        for held, tensor in self.pieces:
            if held.contains(box):
                return value_of(tensor)[box.within(held).slices()]
        raise BridgeError(f"This rank does not hold {describe(box)} of a tensor that it should send.")

    @property
    def is_computed(self) -> bool:
        """Whether its elements do not lie in memory that stays."""
        return any(isinstance(tensor, Computed) for _box, tensor in self.pieces)

    @property
    def device(self) -> torch.device:
        """Of the elements."""
        return self.pieces[0][1].device if self.pieces else torch.device("cpu")

    @cached_property
    def layout(self) -> Layout:
        """Of all pieces."""
        return sum((layout_of(t) for _box, t in self.pieces if isinstance(t, torch.Tensor)), ())

    def copy(self, make: Callable[[torch.Tensor], torch.Tensor]) -> LocalTensor:
        """The same boxes, with other tensors."""
        return LocalTensor(tuple((box, make(value_of(tensor))) for box, tensor in self.pieces))


def layout_of(tensor: torch.Tensor) -> Layout:
    """Of one tensor."""
    return ((tensor.data_ptr(), tensor.dtype, tensor.stride()),)


def cut_out(local: torch.Tensor, cutting: Cutting) -> torch.Tensor:
    """The part of a rank's local tensor in the order of the target: a view."""
    view = local[cutting.slices]
    if not cutting.axes:
        return view
    kept = [axis for axis in cutting.axes if axis != NEW]
    gone = [axis for axis in range(view.dim()) if axis not in kept]
    view = view.permute(*kept, *gone)
    for _ in gone:
        view = view.select(-1, 0)
    for place, axis in enumerate(cutting.axes):
        view = view.unsqueeze(place) if axis == NEW else view
    return view

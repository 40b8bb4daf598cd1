"""Buffers that are used again: fresh host memory costs more than the copy into it."""

from __future__ import annotations

import torch

KEPT = 4
"""Buffers that wait for their next message, at most."""


class Buffers:
    """Buffers of one wire, on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._free: list[torch.Tensor] = []
        self.cleared = False

    def take(self, nbytes: int) -> torch.Tensor:
        """uint8, shape (nbytes,): a part of one that is free and large enough, or new."""
        for index, buffer in enumerate(self._free):
            if buffer.numel() >= nbytes:
                return self._free.pop(index)[:nbytes]
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def give(self, buffer: torch.Tensor) -> None:
        """It is not used any more; the smallest are dropped when there are many."""
        whole: torch.Tensor = buffer if buffer._base is None else buffer._base
        self._free = sorted([*self._free, whole], key=torch.Tensor.numel)[-KEPT:]

    def clear(self) -> None:
        """Frees them, for good."""
        self.cleared = True
        self._free = []

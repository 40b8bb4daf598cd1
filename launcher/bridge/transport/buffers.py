"""Buffers that are used again: fresh host memory costs more than the copy into it.

There are never more of them than messages were under way at a time.
"""

from __future__ import annotations

import torch


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
        # None is large enough: the largest gives way to one that is.
        del self._free[-1:]
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def give(self, buffer: torch.Tensor) -> None:
        """It is not used any more."""
        whole: torch.Tensor = buffer if buffer._base is None else buffer._base
        if not self.cleared:
            self._free = sorted([*self._free, whole], key=torch.Tensor.numel)

    def clear(self) -> None:
        """Frees them, for good."""
        self.cleared = True
        self._free = []

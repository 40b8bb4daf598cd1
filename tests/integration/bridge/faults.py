"""Where in an update a process of a test stops or dies: it does that to itself, at the moment that it is told."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch


class Fault:
    """What happens where, once.

    Args:
        at: ``prepare``, ``prepare done``, ``receiving``, ...; None for nothing.
        number: the signal that the process sends itself there.
        count: how often that place is passed before.
    """

    def __init__(self, at: str | None = None, number: int = signal.SIGKILL, count: int = 0) -> None:
        self._at = at
        self._number = number
        self._count = count

    def here(self, place: str) -> None:
        """The process is at this place."""
        if place != self._at:
            return
        if self._count:
            self._count -= 1
            return
        self._at = None
        print(json.dumps({"held": place}), flush=True)
        # To this thread: one that goes to the process may find another thread first, and this one goes on meanwhile.
        signal.pthread_kill(threading.get_ident(), self._number)


class Passing(Mapping[str, torch.Tensor]):
    """Tensors by name; to ask for one is to be at a place."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], fault: Any, place: str) -> None:
        self._tensors = tensors
        self._fault = fault
        self._place = place

    def __getitem__(self, name: str) -> torch.Tensor:
        self._fault().here(self._place)
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

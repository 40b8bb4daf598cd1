"""The state of every random generator of one process, as JSON."""

from __future__ import annotations

import base64
import random
import sys
from typing import Any

import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """Python's, torch's, and on a GPU its own; numpy's if the program uses numpy."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {"python": [version, list(words), gauss], "torch": _text(torch.get_rng_state())}
    if device.type == "cuda":
        state["cuda"] = _text(torch.cuda.get_rng_state(device))
    if (numpy := sys.modules.get("numpy")) is not None:
        name, keys, *rest = numpy.random.get_state()
        state["numpy"] = [name, keys.tolist(), *rest]
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """The generators go on where they were when ``state`` was taken."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    torch.set_rng_state(_tensor(state["torch"]))
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(_tensor(state["cuda"]), device)
    if "numpy" in state:
        import numpy

        name, keys, *rest = state["numpy"]
        numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(bytes(state.tolist())).decode()


def _tensor(text: str) -> torch.Tensor:
    return torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)

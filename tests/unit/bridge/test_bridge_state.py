"""What tells a module that was published before from one that must be agreed on anew."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from launcher.bridge.trainer.module_state import described, weights


def model() -> nn.Sequential:
    """Two layers, not tied."""
    return nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))


def test_new_values_and_an_equal_module_change_nothing() -> None:
    before = model()
    with torch.no_grad():
        before[0].weight.add_(1)

    assert described(weights(before)) == described(weights(model()))


CHANGES: dict[str, Callable[[nn.Sequential], object]] = {
    "another type": lambda m: m[1].half(),
    "another shape": lambda m: m.append(nn.Linear(4, 2, bias=False)),
    "a buffer more": lambda m: m.register_buffer("scale", torch.ones(1)),
    "weights that are tied now": lambda m: setattr(m[1], "weight", m[0].weight),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_of_what_is_sent_is_noticed(name: str) -> None:
    changed = model()
    CHANGES[name](changed)

    assert described(weights(changed)) != described(weights(model()))

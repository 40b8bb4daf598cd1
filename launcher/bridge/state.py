"""What a trainer's module holds, under the names of its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One tensor of a module."""

    name: str
    tensor: torch.Tensor
    """The parameter or persistent buffer itself; a DTensor if it is sharded."""

    alias_of: str | None
    """Name of an earlier weight that shares its storage (tied weights); None if it has its own."""


def weights(module: nn.Module) -> list[Weight]:
    """Parameters and persistent buffers, sorted by name, so that every rank agrees on the order without talking.

    Tied weights appear under each of their names; all but the first are aliases.
    """
    state = module.state_dict(keep_vars=True)
    found: list[Weight] = []
    owners: dict[int, str] = {}
    for name in sorted(state):
        tensor = state[name]
        owner = owners.setdefault(id(tensor), name)
        found.append(Weight(name=name, tensor=tensor, alias_of=None if owner == name else owner))
    return found


def gathered(selection: list[Weight], dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Whole tensors, one at a time, contiguous, floating point ones as ``dtype``; aliases are left out.

    Collective for sharded tensors: every rank iterates over the same selection in step.
    """
    for weight in selection:
        if weight.alias_of is not None:
            continue
        tensor = weight.tensor.detach()
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        yield weight.name, whole.to(dtype if whole.is_floating_point() else whole.dtype).contiguous()

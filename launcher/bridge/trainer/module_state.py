"""What a trainer's module holds, under the names of its checkpoint, and how it is spread over the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from launcher.bridge.plan.sharding import Sharding, replicated
from launcher.bridge.protocol import Manifest, TensorEntry
from launcher.common.errors import BridgeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One tensor of a module."""

    name: str
    tensor: torch.Tensor
    """The parameter or persistent buffer itself; a DTensor if it is sharded."""

    alias_of: str | None
    """Name of an earlier weight that shares its storage (tied weights); None if it has its own."""

    @property
    def local(self) -> torch.Tensor:
        """What this rank holds of it."""
        tensor = self.tensor.detach()
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    @property
    def dtype(self) -> str:
        """torch's name without the module: ``bfloat16``."""
        return str(self.tensor.dtype).removeprefix("torch.")


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


def described(held: Sequence[Weight]) -> tuple[object, ...]:
    """Equal for modules whose tensors have the same names, shapes, types and places; quicker than :func:`manifest` and
    :func:`shardings`, which then are equal, too.
    """
    return tuple(
        (
            weight.name,
            weight.tensor.shape,
            weight.tensor.dtype,
            weight.alias_of,
            (weight.tensor.device_mesh, weight.tensor.placements) if isinstance(weight.tensor, DTensor) else None,
        )
        for weight in held
    )


def manifest(held: Sequence[Weight]) -> Manifest:
    """What the weights are, whole."""
    return tuple(
        TensorEntry(name=weight.name, shape=tuple(weight.tensor.shape), dtype=weight.dtype, alias_of=weight.alias_of)
        for weight in held
    )


def shardings(held: Sequence[Weight], world_size: int) -> dict[str, Sharding]:
    """How each weight with a storage of its own lies on the trainer's ranks; every rank computes the same.

    Raises:
        BridgeError: a tensor's mesh is not all ranks in order.
    """
    whole = replicated(world_size)
    return {
        weight.name: _sharding(weight, world_size) if isinstance(weight.tensor, DTensor) else whole
        for weight in held
        if weight.alias_of is None
    }


def _sharding(weight: Weight, world_size: int) -> Sharding:
    mesh = weight.tensor.device_mesh  # type: ignore[attr-defined]
    ranks = mesh.mesh.flatten().tolist()
    if ranks != list(range(world_size)):
        raise BridgeError(
            f"`{weight.name}` lies on the ranks {ranks}, but the bridge needs a mesh of all {world_size} in order."
        )
    placements = weight.tensor.placements  # type: ignore[attr-defined]
    return Sharding.parse(mesh.shape, [str(placement) for placement in placements])

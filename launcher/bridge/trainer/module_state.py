"""What a trainer's module holds, under the names of its checkpoint, and how it is spread over the ranks."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from launcher.bridge.codec.checksum import MASK, partial
from launcher.bridge.plan.sharding import Sharding
from launcher.bridge.protocol import TensorEntry
from launcher.bridge.trainer.description import Description, HeldTensor, Union, named_ranks, replicated_shards
from launcher.bridge.trainer.rank_group import RankGroup
from launcher.bridge.trainer.refusal import wrapper_problem
from launcher.bridge.trainer.saved import saved_views
from launcher.common.errors import BridgeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One tensor of a module."""

    name: str
    tensor: torch.Tensor
    """The parameter or persistent buffer itself; a DTensor if it is sharded."""

    alias_of: str | None
    """Name of an earlier weight that shares its storage (tied weights); None if it has its own."""

    module: nn.Module | None = None
    """The whole that it belongs to, which knows what a checkpoint has of it."""

    @property
    def local(self) -> torch.Tensor:
        """What this rank holds of it."""
        tensor = self.tensor.detach()
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    @property
    def dtype(self) -> str:
        """torch's name without the module: ``bfloat16``."""
        return str(self.tensor.dtype).removeprefix("torch.")


def weights(module: nn.Module, exclude: Sequence[str] = ()) -> list[Weight]:
    """Parameters and persistent buffers, sorted by name. What ``DistributedDataParallel`` wraps is taken out of it.

    Tied weights appear under each of their names; all but the first are aliases.

    Args:
        exclude: patterns (``*`` and ``?``) of names that are left out.
    """
    while isinstance(module, nn.parallel.DistributedDataParallel):
        module = module.module
    state = module.state_dict(keep_vars=True)
    if exclude:
        left_out = re.compile("|".join(map(fnmatch.translate, exclude)))
        state = {name: tensor for name, tensor in state.items() if not left_out.match(name)}
    found: list[Weight] = []
    owners: dict[int, str] = {}
    for name in sorted(state):
        tensor = state[name]
        owner = owners.setdefault(id(tensor), name)
        alias_of = None if owner == name else owner
        found.append(Weight(name=name, tensor=tensor, alias_of=alias_of, module=module))
    return found


def described(held: Sequence[Weight]) -> tuple[object, ...]:
    """Equal for modules whose tensors have the same names, shapes, types and places; quicker than :func:`description`,
    which then is equal, too.
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


def description(held: Sequence[Weight], *, is_adapter: bool = False) -> Description:
    """What this rank holds, for the others; of a model, or of an adapter.

    Raises:
        BridgeError: a tensor's placement is partial, or not one that the bridge knows; names and shapes tell that these
            are not the weights themselves; or a checkpoint of the module is more than views of its tensors.
    """
    if not is_adapter and (problem := wrapper_problem({weight.name: weight.tensor for weight in held})):
        raise BridgeError(problem)
    entries = [TensorEntry(name=w.name, shape=tuple(w.tensor.shape), dtype=w.dtype, alias_of=w.alias_of) for w in held]
    module = held[0].module if held else None
    saved = {} if module is None else saved_views(module, tuple(entries))
    return tuple(
        HeldTensor(
            name=weight.name,
            shape=tuple(weight.tensor.shape),
            dtype=weight.dtype,
            alias_of=weight.alias_of,
            sharding=_sharding(weight.name, weight.tensor) if isinstance(weight.tensor, DTensor) else None,
            saved=saved.get(weight.name),
        )
        for weight in held
    )


def _sharding(name: str, tensor: DTensor) -> Sharding:
    mesh, placements = tensor.device_mesh, [str(placement) for placement in tensor.placements]
    try:
        return Sharding.parse(mesh.shape, placements, mesh.mesh.flatten().tolist())
    except BridgeError as error:
        raise BridgeError(f"`{name}`: {error}") from error


def compare_replicas(held: Sequence[Weight], found: Union, ranks: RankGroup) -> None:
    """Compares by checksum what several ranks hold alike; every rank calls it. Reads each such tensor once.

    Raises:
        BridgeError: on every rank: two ranks hold other values; with the tensor, both ranks and their checksums.
    """
    shards = list(replicated_shards(found))
    if not shards:
        return
    by_name = {weight.name: weight.local for weight in held}
    # Each part's checksum from the first rank that holds it, on every rank.
    first, own = torch.zeros(len(shards), dtype=torch.int64), torch.zeros(len(shards), dtype=torch.int64)
    for index, (name, shape, shard) in enumerate(shards):
        if ranks.rank in shard.ranks:
            own[index] = partial(by_name[name], box=shard.box, shape=shape)
            if ranks.rank == shard.ranks[0]:
                first[index] = own[index]
    ranks.all_reduce_sum(first)
    held_here = torch.tensor([ranks.rank in shard.ranks for _name, _shape, shard in shards])
    wrong = ((first != own) & held_here).nonzero().flatten()
    pairs = ranks.all_gather((len(wrong), int(wrong[0]) if len(wrong) else 0))
    odd = [rank for rank, (count, _index) in enumerate(pairs) if count]
    if not odd:
        return
    count, index = pairs[odd[0]]
    name, _shape, shard = shards[index]
    sums = [value & MASK for value, _ in ranks.all_gather((int(own[index]), 0))]
    a, b = shard.ranks[0], odd[0]
    raise BridgeError(
        f"`{name}`{f' and {count - 1} more' if count > 1 else ''} should be the same on trainer"
        f" {named_ranks(shard.ranks)}, but is not: its checksum is {sums[a]:016x} on rank {a} and {sums[b]:016x} on"
        f" rank {b} ({named_ranks(odd)} of {ranks.size} {'differs' if len(odd) == 1 else 'differ'}). HINT: a replica"
        " drifted, or was never synchronised; broadcast one rank's weights, and check that every rank steps alike."
    )

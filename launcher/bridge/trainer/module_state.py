"""What a trainer's module holds, under the names of its checkpoint, and how it is spread over the ranks."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from launcher.bridge.codec.checksum import MASK, partial
from launcher.bridge.codec.local import Computed, LocalTensor, cut_out
from launcher.bridge.plan.boxes import Box
from launcher.bridge.plan.sharding import Sharding
from launcher.bridge.plan.tensor_map import Cutting, TensorMap
from launcher.bridge.protocol import TensorEntry
from launcher.bridge.trainer.description import Description, HeldPart, HeldTensor, Union, named_ranks, replicated_shards
from launcher.bridge.trainer.rank_group import RankGroup
from launcher.bridge.trainer.refusal import wrapper_problem
from launcher.bridge.trainer.saved import saved_views
from launcher.common.errors import BridgeError

Compute = Callable[[torch.Tensor, Box], torch.Tensor]
"""From what a rank holds of a tensor, and the box that it is, to what is sent of it: the same shape and type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPart:
    """One tensor in this rank's memory, and what it is of a weight."""

    tensor: torch.Tensor
    """A DTensor, or what this rank holds of it."""

    shape: tuple[int, ...]
    """Of the whole tensor."""

    box: Box | None = None
    """Where what this rank holds lies in the whole tensor; None for a DTensor, and for all of it."""

    maps: tuple[TensorMap, ...] | None = None
    """What of the whole tensor is what of the weight; None if they are the same."""

    compute: Compute | None = None
    """What is sent in place of the elements that this rank holds."""

    @property
    def local(self) -> torch.Tensor:
        """What this rank holds of it."""
        tensor = self.tensor.detach()
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One tensor of the checkpoint, of which this rank holds something."""

    name: str
    shape: tuple[int, ...]
    """Of the whole tensor."""

    parts: tuple[WeightPart, ...]
    alias_of: str | None = None
    """Name of an earlier weight that shares its storage (tied weights); None if it has its own."""

    module: nn.Module | None = None
    """The whole that it belongs to, which knows what a checkpoint has of it."""

    @classmethod
    def of(
        cls, name: str, tensor: torch.Tensor, alias_of: str | None = None, module: nn.Module | None = None
    ) -> Weight:
        """A tensor as it is: a DTensor, or whole on this rank."""
        shape = tuple(tensor.shape)
        parts = (WeightPart(tensor=tensor, shape=shape),)
        return cls(name=name, shape=shape, parts=parts, alias_of=alias_of, module=module)

    @property
    def dtype(self) -> str:
        """torch's name without the module: ``bfloat16``."""
        return str(self.parts[0].tensor.dtype).removeprefix("torch.")


def weights(module: nn.Module, exclude: Sequence[str] = ()) -> list[Weight]:
    """Parameters and persistent buffers, sorted by name. What ``DistributedDataParallel`` wraps is taken out of it.

    Tied weights appear under each of their names; all but the first are aliases.

    Args:
        exclude: patterns (``*`` and ``?``) of names that are left out.
    """
    while isinstance(module, nn.parallel.DistributedDataParallel):
        module = module.module
    state = module.state_dict(keep_vars=True)
    found: list[Weight] = []
    owners: dict[int, str] = {}
    for name in kept(sorted(state), exclude):
        tensor = state[name]
        owner = owners.setdefault(id(tensor), name)
        found.append(Weight.of(name, tensor, None if owner == name else owner, module))
    return found


def kept(names: Iterable[str], exclude: Sequence[str]) -> Iterable[str]:
    """Names that match none of some patterns (``*``, ``?``)."""
    left_out = re.compile("|".join(map(fnmatch.translate, exclude)) or r"(?!)")
    return (name for name in names if not left_out.match(name))


def described(held: Sequence[Weight]) -> tuple[object, ...]:
    """Equal for modules whose tensors have the same names, shapes, types and places; quicker than :func:`description`,
    which then is equal, too.
    """
    return tuple(
        (weight.name, weight.shape, weight.dtype, weight.alias_of, tuple(map(_described, weight.parts)))
        for weight in held
    )


def _described(part: WeightPart) -> tuple[object, ...]:
    mesh = (part.tensor.device_mesh, part.tensor.placements) if isinstance(part.tensor, DTensor) else None
    return (part.shape, part.box, part.maps, mesh)


def description(held: Sequence[Weight], *, is_adapter: bool = False) -> Description:
    """What this rank holds, for the others; of a model, or of an adapter.

    Raises:
        BridgeError: a tensor's placement is partial, or not one that the bridge knows; names and shapes tell that these
            are not the weights themselves; or a checkpoint of the module is more than views of its tensors.
    """
    tensors = {weight.name: weight.parts[0].tensor for weight in held}
    if not is_adapter and (problem := wrapper_problem(tensors)):
        raise BridgeError(problem)
    entries = [TensorEntry(name=w.name, shape=w.shape, dtype=w.dtype, alias_of=w.alias_of) for w in held]
    module = held[0].module if held else None
    saved = {} if module is None else saved_views(module, tuple(entries))
    return tuple(
        HeldTensor(
            name=weight.name,
            shape=weight.shape,
            dtype=weight.dtype,
            alias_of=weight.alias_of,
            saved=saved.get(weight.name),
            parts=tuple(
                HeldPart(
                    shape=part.shape,
                    sharding=_sharding(weight.name, part.tensor) if isinstance(part.tensor, DTensor) else None,
                    box=part.box,
                    maps=part.maps,
                )
                for part in weight.parts
            ),
        )
        for weight in held
    )


def _sharding(name: str, tensor: DTensor) -> Sharding:
    mesh, placements = tensor.device_mesh, [str(placement) for placement in tensor.placements]
    try:
        return Sharding.parse(mesh.shape, placements, mesh.mesh.flatten().tolist())
    except BridgeError as error:
        raise BridgeError(f"`{name}`: {error}") from error


Cuttings = Mapping[str, Sequence[Sequence[tuple[Box, Cutting]]]]
"""By weight, of each of its parts: what this rank's tensor is, and which pieces of it are which boxes of the weight."""


def cuttings(own: Description, rank: int) -> Cuttings:
    """How this rank's tensors are cut; the same for every version."""
    return {
        held.name: [
            [(box, cutting) for holder, box in part.held([rank]) if holder == rank for cutting in part.cuttings(box)]
            for part in held.parts
        ]
        for held in own
    }


def shards(held: Sequence[Weight], cut: Cuttings, names: Container[str]) -> dict[str, LocalTensor]:
    """Views of what this rank holds of some weights."""
    return {
        weight.name: LocalTensor(
            tuple(
                (cutting.box, _piece(part, box, cutting))
                for part, of_part in zip(weight.parts, cut[weight.name], strict=True)
                for box, cutting in of_part
            )
        )
        for weight in held
        if weight.name in names
    }


def _piece(part: WeightPart, box: Box, cutting: Cutting) -> torch.Tensor | Computed:
    local, compute = part.local, part.compute
    if compute is None:
        return cut_out(local, cutting)
    return Computed(lambda: cut_out(compute(local, box), cutting), local.device)


def compare_replicas(held: Mapping[str, LocalTensor], found: Union, ranks: RankGroup) -> None:
    """Compares by checksum what several ranks hold alike; every rank calls it. Reads each such tensor once.

    Raises:
        BridgeError: on every rank: two ranks hold other values; with the tensor, both ranks and their checksums.
    """
    parts = list(replicated_shards(found))
    if not parts:
        return
    # Each part's checksum from the first rank that holds it, on every rank.
    first, own = torch.zeros(len(parts), dtype=torch.int64), torch.zeros(len(parts), dtype=torch.int64)
    for index, (name, shape, shard) in enumerate(parts):
        if ranks.rank in shard.ranks:
            own[index] = partial(held[name].at(shard.box), box=shard.box, shape=shape)
            if ranks.rank == shard.ranks[0]:
                first[index] = own[index]
    ranks.all_reduce_sum(first)
    held_here = torch.tensor([ranks.rank in shard.ranks for _name, _shape, shard in parts])
    wrong = ((first != own) & held_here).nonzero().flatten()
    pairs = ranks.all_gather((len(wrong), int(wrong[0]) if len(wrong) else 0))
    odd = [rank for rank, (count, _index) in enumerate(pairs) if count]
    if not odd:
        return
    count, index = pairs[odd[0]]
    name, _shape, shard = parts[index]
    sums = [value & MASK for value, _ in ranks.all_gather((int(own[index]), 0))]
    a, b = shard.ranks[0], odd[0]
    raise BridgeError(
        f"`{name}`{f' and {count - 1} more' if count > 1 else ''} should be the same on trainer"
        f" {named_ranks(shard.ranks)}, but is not: its checksum is {sums[a]:016x} on rank {a} and {sums[b]:016x} on"
        f" rank {b} ({named_ranks(odd)} of {ranks.size} {'differs' if len(odd) == 1 else 'differ'}). HINT: a replica"
        " drifted, or was never synchronised; broadcast one rank's weights, and check that every rank steps alike."
    )

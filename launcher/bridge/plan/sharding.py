"""What each trainer rank holds: sharding over a device mesh, as boxes, without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from math import prod

from launcher.bridge.plan.boxes import Box, chunk
from launcher.common.errors import BridgeError


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A whole tensor of the trainer."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A part of a tensor and every rank that holds these same bytes."""

    box: Box
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A tensor of the trainer and who holds which part of it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    shards: tuple[Shard, ...]
    """One object for all tensors placed alike: the planner intersects once per object, not once per name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """How one tensor lies on a mesh of ranks."""

    mesh: tuple[int, ...]
    """Sizes of the mesh dimensions; the last one varies fastest."""

    dims: tuple[int | None, ...]
    """For each mesh dimension the tensor dimension that it shards, or None where it replicates."""

    order: tuple[int, ...]
    """Mesh dimensions in the order in which they cut: each chunks what the ones before it left."""

    ranks: tuple[int, ...] = ()
    """The trainer ranks in the mesh, row-major; empty for those from 0 on, in order."""

    @classmethod
    def parse(cls, mesh: Sequence[int], placements: Sequence[str], ranks: Sequence[int] = ()) -> Sharding:
        """Reads placements as DTensor prints them: ``R``, ``S(0)``, ``_S(0, 4)``.

        FSDP over tensor parallelism prints ``(_S(0, tp), S(0))``: the tensor-parallel dimension cut first.

        Args:
            ranks: that are in the mesh, row-major; empty for those from 0 on.

        Raises:
            BridgeError: A placement is partial or unknown, or a strided one does not follow the cuts to its right.
        """
        if len(mesh) != len(placements):
            raise BridgeError(
                f"`placements` ({', '.join(placements)}) has not one entry per mesh dimension {tuple(mesh)}."
            )
        dims: list[int | None] = []
        plain: list[int] = []
        strided: list[int] = []
        for axis, text in enumerate(placements):
            found = re.fullmatch(r"R|S\((\d+)\)|_S\((\d+), ?(\d+)\)", text)
            if found is None:
                raise BridgeError(f"`placement` ({text}) is none of R, S(dim), _S(dim, split_factor).")
            dim = found[1] or found[2]
            dims.append(None if dim is None else int(dim))
            if dim is not None:
                (strided if found[2] else plain).append(axis)
        for axis in strided:
            factor = int(re.findall(r"\d+", placements[axis])[1])
            after = prod(mesh[a] for a in plain if a > axis and dims[a] == dims[axis])
            if factor != after:
                raise BridgeError(
                    f"`placement` ({placements[axis]}) on mesh {tuple(mesh)} must have split factor {after}, the "
                    "shards that the mesh dimensions after it make of the same tensor dimension."
                )
        named = tuple(ranks)
        return cls(
            mesh=tuple(mesh),
            dims=tuple(dims),
            order=(*plain, *strided),
            ranks=() if named == tuple(range(len(named))) else named,
        )

    @property
    def world_size(self) -> int:
        """Ranks in the mesh."""
        return prod(self.mesh)

    @property
    def members(self) -> Sequence[int]:
        """The trainer ranks in the mesh, in its order."""
        return self.ranks or range(self.world_size)

    def boxes(self, shape: Sequence[int]) -> tuple[Box, ...]:
        """What each rank of the mesh, in its order, holds of a tensor of ``shape``; empty where a chunk is empty."""
        return tuple(self._box(shape, place) for place in range(self.world_size))

    def held(self, shape: Sequence[int]) -> Iterator[tuple[int, Box]]:
        """Each trainer rank of the mesh with what it holds of a tensor of ``shape``."""
        return zip(self.members, self.boxes(shape), strict=True)

    def _box(self, shape: Sequence[int], rank: int) -> Box:
        coordinate: list[int] = []
        for size in reversed(self.mesh):
            rank, index = divmod(rank, size)
            coordinate.insert(0, index)
        box = Box.full(shape)
        for axis in self.order:
            dim = self.dims[axis]
            if dim is not None:
                start, stop = chunk(box.shape[dim], self.mesh[axis], coordinate[axis])
                box = box.narrow(dim, box.start[dim] + start, box.start[dim] + stop)
        return box


def replicated(world_size: int) -> Sharding:
    """Every rank holds everything: a plain module, or DDP."""
    return Sharding.parse((world_size,), ("R",))


def fsdp(world_size: int) -> Sharding:
    """FSDP2: dimension 0 over all ranks."""
    return Sharding.parse((world_size,), ("S(0)",))


def hsdp(replicas: int, shards: int) -> Sharding:
    """Replicas of an FSDP2 group."""
    return Sharding.parse((replicas, shards), ("R", "S(0)"))


def tensor_parallel(data_parallel: int, tp: int, dim: int | None) -> Sharding:
    """Tensor parallelism inside each data-parallel replica; ``dim`` None for a tensor that it replicates."""
    return Sharding.parse((data_parallel, tp), ("R", "R" if dim is None else f"S({dim})"))


def fsdp_tp(shards: int, tp: int, dim: int | None) -> Sharding:
    """FSDP2 over tensor parallelism: the tensor-parallel part is what FSDP chunks."""
    if dim == 0:
        return Sharding.parse((shards, tp), (f"_S(0, {tp})", "S(0)"))
    return Sharding.parse((shards, tp), ("S(0)", "R" if dim is None else f"S({dim})"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a tensor lies, over all trainer ranks: on one mesh or several, which hold the same, or part by part."""

    shardings: tuple[Sharding, ...] = ()
    shards: tuple[Shard, ...] = ()
    """Parts that no mesh describes."""


@lru_cache(maxsize=4096)
def shards_of(placement: Sharding | Placement, shape: tuple[int, ...]) -> tuple[Shard, ...]:
    """The distinct parts of a tensor and their holders; the same object for equal arguments."""
    if isinstance(placement, Sharding):
        return group(placement.held(shape))
    named = ((rank, shard.box) for shard in placement.shards for rank in shard.ranks)
    return group(chain(*(sharding.held(shape) for sharding in placement.shardings), named))


def place(tensors: Iterable[TensorSpec], rules: Sequence[tuple[str, Sharding]]) -> dict[str, Source]:
    """Sources from placements by name.

    Args:
        tensors: The trainer's tensors.
        rules: Regular expressions that must match a whole name, first match wins.

    Raises:
        BridgeError: A name matches no rule.
    """
    compiled = [(re.compile(pattern), sharding) for pattern, sharding in rules]
    sources = {}
    for spec in tensors:
        sharding = next((s for pattern, s in compiled if pattern.fullmatch(spec.name)), None)
        if sharding is None:
            raise BridgeError(f"No placement rule matches `{spec.name}`. HINT: end the rules with ('.*', ...).")
        shards = shards_of(sharding, spec.shape)
        sources[spec.name] = Source(name=spec.name, shape=spec.shape, dtype=spec.dtype, shards=shards)
    return sources


def group(held: Iterable[tuple[int, Box]]) -> tuple[Shard, ...]:
    """The distinct parts that some ranks hold, each with all of its holders."""
    ranks: dict[Box, list[int]] = {}
    for rank, box in held:
        if box.volume:
            ranks.setdefault(box, []).append(rank)
    ordered = sorted(ranks, key=lambda box: box.start)
    return tuple(Shard(box=box, ranks=tuple(dict.fromkeys(ranks[box]))) for box in ordered)

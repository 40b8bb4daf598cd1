"""What each trainer rank says that it holds, and what that makes over all ranks, or where they disagree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any

from launcher.bridge.plan.boxes import Box, tiling_problem
from launcher.bridge.plan.sharding import Placement, Shard, Sharding, group, shards_of
from launcher.bridge.plan.tensor_map import Cutting, TensorMap
from launcher.bridge.protocol import Manifest, SavedView, TensorEntry
from launcher.common.codec import from_json, to_json
from launcher.common.errors import BridgeError

MOST_NAMED = 8
"""Ranks or tensors that a message lists; it counts the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldPart:
    """One tensor in a rank's memory, and what it is of the tensor that is sent."""

    shape: tuple[int, ...]
    """Of the whole tensor of which the one in memory is a shard."""

    sharding: Sharding | None = None
    """How that lies on a mesh that this rank is in; None for what the rank holds on its own."""

    box: Box | None = None
    """What of it this rank holds on its own; the whole tensor if None."""

    maps: tuple[TensorMap, ...] | None = None
    """What of it is what of the tensor that is sent; both are the same if None."""

    @property
    def is_whole(self) -> bool:
        """Whether it is simply the tensor that is sent."""
        return self.sharding is None and self.box is None and self.maps is None

    def held(self, ranks: Iterable[int]) -> Iterable[tuple[int, Box]]:
        """Each of these ranks, which hold it, or each rank of its mesh, with what it holds of the tensor in memory."""
        if self.sharding is not None:
            return self.sharding.held(self.shape)
        box = self.box or Box.full(self.shape)
        return ((rank, box) for rank in ranks)

    def cuttings(self, box: Box) -> list[Cutting]:
        """What a box of the tensor in memory is of the tensor that is sent."""
        if self.maps is None:
            whole = tuple(slice(0, size) for size in box.shape)
            return [Cutting(slices=whole, axes=(), box=box)] if box.volume else []
        found = (tensor_map.cut(box) for tensor_map in self.maps)
        return [cutting for cutting in found if cutting is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldTensor:
    """One tensor of which a rank holds something; equal on ranks of one mesh."""

    name: str
    shape: tuple[int, ...]
    """Of the whole tensor."""

    dtype: str
    """torch's name without the module: ``bfloat16``."""

    parts: tuple[HeldPart, ...]
    """What this rank holds of it, from one tensor in its memory or several."""

    alias_of: str | None = None
    """An earlier tensor that shares its storage on this rank."""

    saved: tuple[SavedView, ...] | None = None
    """What a checkpoint has of it; None: the whole, under its own name."""


Description = tuple[HeldTensor, ...]
"""Of one rank, sorted by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Union:
    """The tensors of all ranks."""

    manifest: Manifest
    placements: Mapping[str, Placement]
    """Of each tensor that has bytes of its own."""


def digest_of(description: Description) -> str:
    """Equal for equal descriptions."""
    return sha256(to_json(description)).hexdigest()


def encoded(description: Description) -> bytes:
    """For another rank."""
    return to_json(description)


def decoded(data: bytes) -> Description:
    """A description that another rank encoded."""
    return from_json(data, Description)


def union(descriptions: Sequence[tuple[Description, Sequence[int]]], world_size: int) -> Union:
    """What all ranks hold together.

    Args:
        descriptions: each distinct one with the ranks whose it is.

    Raises:
        BridgeError: ranks disagree about a tensor, a rank lacks one that its mesh places there, or the parts do not
            make up the whole; with names, ranks and values.
    """
    found: dict[str, list[tuple[HeldTensor, Sequence[int]]]] = {}
    for description, ranks in descriptions:
        for held in description:
            found.setdefault(held.name, []).append((held, ranks))
    entries, placements = [], {}
    whole: dict[tuple[Placement, tuple[int, ...]], str | None] = {}
    for name in sorted(found):
        holders = found[name]
        first = holders[0][0]
        _agree(name, "shape", holders, lambda held: held.shape)
        _agree(name, "type", holders, lambda held: held.dtype)
        aliases = {held.alias_of for held, _ranks in holders}
        # Tied on some ranks only: sent as a tensor of its own.
        alias = aliases.pop() if len(aliases) == 1 else None
        # Of tensors that are tied on some ranks only, a checkpoint has what any rank would save.
        saved = next((held.saved for held, _ranks in holders if held.saved), first.saved)
        entries.append(TensorEntry(name=name, shape=first.shape, dtype=first.dtype, alias_of=alias, saved=saved))
        if alias is None:
            placement = placements[name] = _placement(name, holders)
            key = (placement, first.shape)
            if key not in whole:
                shards = shards_of(placement, first.shape)
                whole[key] = tiling_problem(Box.full(first.shape), (shard.box for shard in shards))
            if whole[key]:
                held_by = named_ranks(sorted(rank for _held, ranks in holders for rank in ranks), world_size)
                raise BridgeError(
                    f"What the trainer's ranks hold of `{name}` {first.shape} does not make up the tensor: {whole[key]}"
                    f" (held on {held_by})."
                )
    return Union(manifest=tuple(entries), placements=placements)


def named_ranks(ranks: Sequence[int], world_size: int | None = None) -> str:
    """``rank 3``, ``ranks 0-2, 5``, ``all 8 ranks``."""
    if world_size is not None and len(set(ranks)) == world_size > 1:
        return f"all {world_size} ranks"
    spans: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    texts = [str(a) if a == b else f"{a}-{b}" for a, b in spans]
    more = f" and {len(texts) - MOST_NAMED} more" if len(texts) > MOST_NAMED else ""
    return f"rank{'' if len(set(ranks)) == 1 else 's'} {', '.join(texts[:MOST_NAMED])}{more}"


def _agree(
    name: str,
    what: str,
    holders: Sequence[tuple[HeldTensor, Sequence[int]]],
    value: Callable[[HeldTensor], Any],
) -> None:
    by_value: dict[Any, list[int]] = {}
    for held, ranks in holders:
        by_value.setdefault(value(held), []).extend(ranks)
    if len(by_value) > 1:
        # The most common value first: the others are the odd ones.
        counts = Counter({found: len(ranks) for found, ranks in by_value.items()})
        texts = [f"{found} on {named_ranks(by_value[found])}" for found, _count in counts.most_common()]
        raise BridgeError(f"The trainer's ranks disagree about the {what} of `{name}`: {'; '.join(texts)}.")


def _placement(name: str, holders: Sequence[tuple[HeldTensor, Sequence[int]]]) -> Placement:
    shardings: list[Sharding] = []
    plain: list[int] = []
    boxes: list[tuple[int, Box]] = []
    for held, ranks in holders:
        for part in held.parts:
            if part.sharding is not None:
                _check_mesh(name, part, holders)
            if part.is_whole:
                plain += ranks
            elif part.sharding is not None and part.maps is None:
                shardings.append(part.sharding)
            else:
                boxes += _boxes(part, tuple(ranks))
    if plain:
        shardings.append(Sharding.parse((len(plain),), ("R",), sorted(plain)))
    return Placement(shardings=tuple(sorted(set(shardings), key=repr)), shards=group(boxes))


@lru_cache(maxsize=1024)
def _boxes(part: HeldPart, ranks: tuple[int, ...]) -> tuple[tuple[int, Box], ...]:
    """Layers are alike: each way of cutting is computed once."""
    return tuple((rank, cutting.box) for rank, box in part.held(ranks) for cutting in part.cuttings(box))


def _check_mesh(name: str, part: HeldPart, holders: Sequence[tuple[HeldTensor, Sequence[int]]]) -> None:
    """Every rank of a mesh holds the tensor the way the mesh says."""
    assert part.sharding is not None
    known = {rank for held, ranks in holders if part in held.parts for rank in ranks}
    if lacking := sorted(set(part.sharding.members) - known):
        raise BridgeError(
            f"`{name}` lies on {named_ranks(part.sharding.members)} by its mesh on {named_ranks(sorted(known))}, but"
            f" {named_ranks(lacking)} {'does' if len(lacking) == 1 else 'do'} not hold it that way."
        )


def replicated_shards(found: Union) -> Iterator[tuple[str, tuple[int, ...], Shard]]:
    """Each part of a tensor that several ranks hold, with the tensor's name and shape; the same order on all ranks."""
    for entry in found.manifest:
        if entry.alias_of is None:
            for shard in shards_of(found.placements[entry.name], entry.shape):
                if len(shard.ranks) > 1:
                    yield entry.name, entry.shape, shard

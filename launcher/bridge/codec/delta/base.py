"""What a trainer rank keeps of the version that the replicas have committed, to tell what has changed since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch

from launcher.bridge.codec.local import LocalTensor, value_of
from launcher.bridge.plan import Plan


class Base:
    """One copy of this rank's shards, in the types in which they travel: that is the extra memory.

    It follows what has been committed, not what has been sent: a version that no replica takes leaves it as it is.
    """

    def __init__(self) -> None:
        self.version: int | None = None
        self.shards: dict[str, LocalTensor] = {}

    def advance(
        self, version: int, shards: Mapping[str, LocalTensor], only: frozenset[str] | None, plans: Iterable[Plan]
    ) -> None:
        """A replica has committed a version.

        Args:
            version: which.
            shards: what this rank sent, by name.
            only: those that were sent; all if None.
            plans: by which they were sent.
        """
        if version == self.version:
            return
        sent = {name: shard for name, shard in shards.items() if only is None or name in only}
        new = sent.keys() - self.shards.keys()
        types = _types(plans) if new else {}
        for name in new:
            shard = sent[name]
            self.shards[name] = shard.copy(partial(torch.empty_like, dtype=types.get(name)))
        if sent:
            with torch.no_grad():
                # A few launches on a GPU, however many tensors there are.
                pairs = [
                    (value_of(kept), value_of(tensor))
                    for name, shard in sent.items()
                    for (_, kept), (_, tensor) in zip(self.shards[name].pieces, shard.pieces, strict=True)
                ]
                torch._foreach_copy_([kept for kept, _ in pairs], [tensor for _, tensor in pairs])
        self.version = version

    def clear(self) -> None:
        """Forgets it: no replica has it any more."""
        self.version, self.shards = None, {}

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(value_of(piece).nbytes for shard in self.shards.values() for _box, piece in shard.pieces)


def _types(plans: Iterable[Plan]) -> dict[str, torch.dtype]:
    """By name, the type in which a tensor travels, if that is the same everywhere."""
    found: dict[str, set[str]] = {}
    for plan in plans:
        for transfers in plan.transfers.values():
            for transfer in transfers:
                found.setdefault(transfer.region.source, set()).add(transfer.wire)
    return {name: getattr(torch, next(iter(wires))) for name, wires in found.items() if len(wires) == 1}

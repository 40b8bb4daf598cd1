"""All ranks of a trainer, when they must agree on something small; one rank needs no process group."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


class Ranks:
    """A group of its own over CPUs: what is agreed here waits for nothing that a GPU computes.

    Every rank makes it, after ``init_process_group`` and in the same order as other groups.

    Args:
        timeout_s: longest wait for the slowest rank.
    """

    def __init__(self, timeout_s: float) -> None:
        self.is_alone = not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
        self.rank = 0 if self.is_alone else dist.get_rank()
        self.world_size = 1 if self.is_alone else dist.get_world_size()
        self.group: dist.ProcessGroup | None = None
        if not self.is_alone:
            self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks for all of them."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Everybody's value, in the order of the ranks, on every rank."""
        if self.group is None:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values  # type: ignore[return-value]  # each has been filled

    def from_main(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

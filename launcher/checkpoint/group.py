"""All ranks of a trainer, when they must agree on something small; one rank needs no process group."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


class CheckpointGroup:
    """A separate gloo group, so that nothing here waits for a GPU's computations. Values are JSON, not pickles.

    Every rank makes it, after ``init_process_group`` and in the same order as other groups.

    Args:
        timeout_s: longest wait for the slowest rank.
    """

    def __init__(self, timeout_s: float) -> None:
        self.is_alone = not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
        self.rank = 0 if self.is_alone else dist.get_rank()
        self.world_size = 1 if self.is_alone else dist.get_world_size()
        self.process_group: dist.ProcessGroup | None = None
        if not self.is_alone:
            self.process_group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def all_gather(self, value: Any) -> list[Any]:
        """Every rank's JSON value, in the order of the ranks, on every rank."""
        if self.process_group is None:
            return [json.loads(json.dumps(value))]
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = torch.zeros(self.world_size, dtype=torch.int64)
        dist.all_gather_into_tensor(lengths, torch.tensor([content.numel()]), group=self.process_group)
        longest = int(lengths.max())
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: content.numel()] = content
        gathered = torch.zeros(self.world_size * longest, dtype=torch.uint8)
        dist.all_gather_into_tensor(gathered, padded, group=self.process_group)
        rows = gathered.view(self.world_size, longest)
        return [json.loads(bytes(row[:length].numpy())) for row, length in zip(rows, lengths.tolist(), strict=True)]

    def from_main(self, value: Any) -> Any:
        """Rank 0's JSON value, on every rank."""
        return self.all_gather(value if self.is_main else None)[0]

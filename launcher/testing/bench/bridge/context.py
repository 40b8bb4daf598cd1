"""What every method that moves weights gets: this rank's tensors, and the group of all ranks."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from launcher.bridge.plan import TensorSpec
from launcher.bridge.trainer.rank_group import RankGroup
from launcher.testing.bench.models import Model

SENDER = 0


@dataclass(kw_only=True)
class Context:
    """One rank's part. Rank 0 is the trainer; the others are the workers of one engine."""

    rank: int
    world_size: int
    device: torch.device
    group: Any
    """A process group of all ranks, on the tensors' device; None if the ranks share a GPU."""

    ranks: RankGroup
    store: str
    """``host:port`` of a store."""

    directory: Path
    """That all ranks share."""

    model: Model
    tensors: dict[str, torch.Tensor]
    """The trainer's: its weights. A worker's: where methods that move whole tensors receive them."""

    round_bytes: int | None
    density: float
    """Share of the elements that differ from the version before, for the methods that send what has changed."""

    @property
    def is_sender(self) -> bool:
        """Whether this is the trainer."""
        return self.rank == SENDER

    def barrier(self) -> None:
        """All ranks; on a GPU all that has been enqueued, too."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        dist.barrier()


class Method(ABC):
    """Moves an update."""

    name: str
    sent_bytes: int | None = None
    """By the last update; None if that is the model's, once to every worker."""

    @abstractmethod
    def once(self) -> None:
        """Moves one update; returns when this rank's part is done."""

    def prepare(self) -> None:  # noqa: B027
        """What precedes an update and is not measured."""

    def check(self) -> None:  # noqa: B027
        """After an update.

        Raises:
            AssertionError: what arrived is not what was sent.
        """

    def close(self) -> None:  # noqa: B027
        """Frees what it holds."""


def weight(spec: TensorSpec, device: torch.device) -> torch.Tensor:
    """A tensor's values, the same on every rank: ordinary numbers, a different one in every element of a row."""
    generator = torch.Generator(device=device).manual_seed(zlib.crc32(spec.name.encode()))
    return torch.randn(spec.shape, generator=generator, device=device, dtype=getattr(torch, spec.dtype))


class Baseline(Method):
    """Whole tensors, received in place."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.tensors = list(context.tensors.values())

    def prepare(self) -> None:
        if not self.context.is_sender:
            self.tensors[-1].zero_()

    def check(self) -> None:
        for name, tensor in self.context.tensors.items():
            spec = TensorSpec(name=name, shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))
            assert torch.equal(tensor, weight(spec, tensor.device)), f"{self.name}: {name} did not arrive"

"""What the trainer's ranks tell each other: small tensors through the program's own default group, no pickle."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import distributed as dist


def world() -> tuple[int, int]:
    """This trainer rank and the number of ranks; one process without a default group is rank 0 of 1."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def device() -> torch.device:
    """Where the default group takes its tensors."""
    nccl = dist.is_initialized() and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def share(value: Any) -> Any:
    """Rank 0's JSON value, on every rank; the others' argument is ignored."""
    rank, size = world()
    if size == 1:
        return value
    encoded = torch.tensor(list(json.dumps(value).encode()) if rank == 0 else [], dtype=torch.uint8)
    length = torch.tensor([encoded.numel()], dtype=torch.int64, device=device())
    dist.broadcast(length, src=0)
    content = encoded.to(device()) if rank == 0 else torch.empty(int(length), dtype=torch.uint8, device=device())
    dist.broadcast(content, src=0)
    return json.loads(content.cpu().numpy().tobytes())


def add_up(numbers: torch.Tensor) -> torch.Tensor:
    """int64 sums over all ranks, modulo 2 ** 64, on every rank."""
    if world()[1] == 1:
        return numbers
    total = numbers.to(device())
    dist.all_reduce(total)
    return total.cpu()


def gather_pairs(pair: tuple[int, int]) -> list[tuple[int, int]]:
    """Each rank's pair of integers, in the order of ranks, on every rank."""
    rank, size = world()
    table = torch.zeros(size, 2, dtype=torch.int64)
    table[rank] = torch.tensor(pair)
    return [(int(node), int(gpu)) for node, gpu in add_up(table).tolist()]

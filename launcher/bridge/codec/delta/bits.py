"""Where two runs of words differ, as positions and as a bit for every word; by numpy on a CPU, where it is quicker."""

from __future__ import annotations

import numpy as np
import torch


def differing(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """bool, shape (words,): where two integer tensors of that shape differ."""
    return left != right if left.is_cuda else torch.from_numpy(left.numpy() != right.numpy())


def count_of(where: torch.Tensor) -> int:
    """How many are true."""
    return int(where.sum()) if where.is_cuda else int(np.count_nonzero(where.numpy()))


def places_of(where: torch.Tensor) -> torch.Tensor:
    """int64 positions, rising, of those that are true."""
    return where.nonzero().view(-1) if where.is_cuda else torch.from_numpy(np.flatnonzero(where.numpy()))


def mask_of(positions: torch.Tensor, count: int) -> torch.Tensor:
    """uint8, shape (ceil(count / 8),): one bit for each of ``count`` words, the first one highest."""
    mask = torch.zeros(-(-count // 8) * 8, dtype=torch.bool, device=positions.device)
    mask[positions] = True
    return packed(mask) if mask.is_cuda else torch.from_numpy(np.packbits(mask.numpy()))


def positions_of(mask: torch.Tensor, count: int) -> torch.Tensor:
    """int64 positions of the bits that are set, of ``count`` words; the inverse of :func:`mask_of`."""
    if mask.is_cuda:
        return unpacked(mask)[:count].nonzero().view(-1)
    return torch.from_numpy(np.flatnonzero(np.unpackbits(mask.numpy(), count=count).view(np.bool_)))


def packed(mask: torch.Tensor) -> torch.Tensor:
    """uint8, eight to one, from bool of shape (a multiple of 8,): what numpy's ``packbits`` does."""
    return (mask.view(-1, 8).to(torch.uint8) << _shifts(mask.device)).sum(1, dtype=torch.uint8)


def unpacked(mask: torch.Tensor) -> torch.Tensor:
    """uint8 of ones and zeros, one to eight: what numpy's ``unpackbits`` does."""
    return ((mask.unsqueeze(1) >> _shifts(mask.device)) & 1).view(-1)


def _shifts(device: torch.device) -> torch.Tensor:
    return torch.arange(7, -1, -1, dtype=torch.uint8, device=device)

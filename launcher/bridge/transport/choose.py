"""Which transport joins which pair: from where both ends are, alike on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.bridge.transport.base import Pair
from launcher.common.errors import BridgeError

if TYPE_CHECKING:
    import torch

AUTO = "auto"
ON_HOST_MEMORY = frozenset({"gloo", "shm", "filesystem"})
"""Transports whose messages lie in host memory; a GPU's tensors are copied there and from there while packing."""

ON_GPU_MEMORY = frozenset({"nccl", "peer", "ipc"})
ON_ONE_HOST = frozenset({"shm", "peer", "ipc"})
TRANSPORTS = (AUTO, *sorted(ON_HOST_MEMORY | ON_GPU_MEMORY))

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NETWORK = Path("/proc/self/ns/net")
CPU = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where an end is: two numbers, which ranks can exchange in a sum over all ranks."""

    host: int
    """Equal for two processes that one kernel runs and that reach each other by the abstract names of Unix sockets,
    hence in one network namespace. Never 0."""

    device: int
    """A GPU by its UUID; 0 for a CPU."""


def here(device: torch.device) -> Place:
    """This process's."""
    return Place(host=_host(), device=_gpu(device.index) if device.type == "cuda" else CPU)


NEXT = {"peer": "nccl", "ipc": "shm", "shm": "gloo"}
"""What ``auto`` takes for a pair that turns out not to have its first choice: GPUs without access to each other's
memory, processes that may not map it, no room for shared memory."""


def choose(transport: str, pair: Pair, sender: Place, receiver: Place) -> tuple[str, ...]:
    """The transports of one pair: the first that both ends can have is taken.

    Args:
        transport: ``auto``, or what every pair shall have.

    Raises:
        BridgeError: this pair cannot have it.
    """
    if transport == AUTO:
        candidates = [_best(sender, receiver)]
        while (further := NEXT.get(candidates[-1])) is not None:
            candidates.append(further)
        return tuple(candidates)
    problem = _problem(transport, sender, receiver)
    if problem is not None:
        raise BridgeError(
            f"`bridge.transport` ({transport}) cannot join trainer rank {pair.sender} and worker {pair.receiver}:"
            f" {problem}. HINT: set `bridge.transport=auto`, which picks for every pair."
        )
    return (transport,)


def possible(device_type: str) -> list[str]:
    """The transports that there are between two ends on a ``cpu`` or on ``cuda``."""
    return sorted(ON_HOST_MEMORY | (ON_GPU_MEMORY if device_type == "cuda" else frozenset()))


def joins(transport: str, sender: Place, receiver: Place) -> bool:
    """Whether a pair can have a transport."""
    return _problem(transport, sender, receiver) is None


def choose_all(transport: str, senders: Sequence[Place], receiver: int, place: Place) -> list[tuple[str, ...]]:
    """The transports from every trainer rank to one worker."""
    return [choose(transport, Pair(sender=i, receiver=receiver), sender, place) for i, sender in enumerate(senders)]


def _best(sender: Place, receiver: Place) -> str:
    if CPU in (sender.device, receiver.device):
        return "shm" if sender.host == receiver.host else "gloo"
    if sender.host != receiver.host:
        return "nccl"
    return "ipc" if sender.device == receiver.device else "peer"


def _problem(transport: str, sender: Place, receiver: Place) -> str | None:
    if transport not in TRANSPORTS:
        return f"there is no such transport; there are {', '.join(TRANSPORTS)}"
    if transport in ON_ONE_HOST and sender.host != receiver.host:
        return "they are not on one host"
    if transport in ON_GPU_MEMORY and CPU in (sender.device, receiver.device):
        return "one of them has no GPU"
    if transport in ("nccl", "peer") and sender.device == receiver.device:
        return "they share a GPU"
    if transport == "ipc" and sender.device != receiver.device:
        return "they are not on one GPU"
    return None


@cache
def _host() -> int:
    boot = BOOT_ID.read_text(encoding="utf-8") if BOOT_ID.exists() else ""
    network = NETWORK.readlink() if NETWORK.is_symlink() else Path()
    return _number(f"{boot} {network}")


@cache
def _gpu(index: int) -> int:
    import torch

    return _number(str(torch.cuda.get_device_properties(index).uuid))


def _number(text: str) -> int:
    """Of 62 bits, so that it fits in an int64."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2 | 1

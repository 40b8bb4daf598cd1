"""Connects all wires of a process at once, in threads, until a deadline."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch

from launcher.bridge.parallel import in_parallel
from launcher.bridge.transport.base import Meeting, Pair, RecvWire, SendWire
from launcher.common.errors import BridgeError, RendezvousTimeout, TransferError, TransportUnavailable

logger = logging.getLogger(__name__)

Wire = TypeVar("Wire", SendWire, RecvWire)
GRACE_S = 0.5
"""Beyond the deadline, so that a transport can name what is missing itself."""


def connect_senders(
    meeting: Meeting,
    rank: int,
    transports: Mapping[int, Sequence[str]],
    largest: Mapping[int, int],
    device: torch.device,
) -> dict[int, SendWire]:
    """A trainer rank's wires, by worker.

    Args:
        transports: by worker; the first that both ends can have is taken.
        largest: bytes of the largest message to each worker.
        device: this rank's GPU, or the CPU.

    Raises:
        BridgeError: not all of them could be connected in time.
    """
    calls = {}
    for worker, names in transports.items():
        pair = Pair(sender=rank, receiver=worker)
        candidates = {name: partial(_sender, name, meeting, pair, largest[worker], device) for name in names}
        calls[worker] = partial(_first_available, pair, candidates)
    return _connect(calls, meeting)


def connect_receivers(
    meeting: Meeting, rank: int, transports: Mapping[int, Sequence[str]], device: torch.device
) -> dict[int, RecvWire]:
    """A worker's wires, by trainer rank; the arguments are as for :func:`connect_senders`."""
    calls = {}
    for sender, names in transports.items():
        pair = Pair(sender=sender, receiver=rank)
        calls[sender] = partial(
            _first_available, pair, {name: partial(_receiver, name, meeting, pair, device) for name in names}
        )
    return _connect(calls, meeting)


def _first_available(pair: Pair, candidates: Mapping[str, Callable[[], Wire]]) -> Wire:
    """Both ends try the same transports in the same order; one that either end cannot use, neither uses."""
    *before, last = candidates
    for name in before:
        try:
            return candidates[name]()
        except TransportUnavailable as error:
            logger.warning("wire %s: no %s, trying the next transport: %s", pair, name, error)
    return candidates[last]()


def _sender(name: str, meeting: Meeting, pair: Pair, largest: int, device: torch.device) -> SendWire:
    match name:
        case "gloo":
            from launcher.bridge.transport import gloo

            return gloo.connect_sender(meeting, pair)
        case "nccl":
            from launcher.bridge.transport import nccl

            return nccl.connect_sender(meeting, pair, device)
        case "shm":
            from launcher.bridge.transport import shm

            return shm.connect_sender(meeting, pair, largest)
        case "filesystem":
            from launcher.bridge.transport import filesystem

            return filesystem.connect_sender(meeting, pair)
        case "peer" | "ipc":
            from launcher.bridge.transport import device as gpus

            return gpus.connect_sender(meeting, pair, device)
    raise BridgeError(f"No transport is called {name!r}.")


def _receiver(name: str, meeting: Meeting, pair: Pair, device: torch.device) -> RecvWire:
    match name:
        case "gloo":
            from launcher.bridge.transport import gloo

            return gloo.connect_receiver(meeting, pair)
        case "nccl":
            from launcher.bridge.transport import nccl

            return nccl.connect_receiver(meeting, pair, device)
        case "shm":
            from launcher.bridge.transport import shm

            return shm.connect_receiver(meeting, pair)
        case "filesystem":
            from launcher.bridge.transport import filesystem

            return filesystem.connect_receiver(meeting, pair)
        case "peer" | "ipc":
            from launcher.bridge.transport import device as gpus

            return gpus.connect_receiver(meeting, pair, device, same_gpu=name == "ipc")
    raise BridgeError(f"No transport is called {name!r}.")


def _connect(calls: Mapping[int, Callable[[], Wire]], meeting: Meeting) -> dict[int, Wire]:
    made: dict[int, Wire] = {}
    lock = threading.Lock()
    given_up = False

    def one(peer: int, call: Callable[[], Wire]) -> None:
        wire = call()
        with lock:
            made[peer] = wire
            late = given_up
        if late:
            wire.abort()

    try:
        in_parallel([partial(one, peer, call) for peer, call in calls.items()], timeout_s=meeting.timeout_s + GRACE_S)
    except BridgeError as error:
        with lock:
            given_up = True
            wires = list(made.values())
        for wire in wires:
            wire.abort()
        if isinstance(error, TransferError):
            raise RendezvousTimeout(f"Group {meeting.group}: not all ends connected: {error}") from error
        raise
    return made

"""``gloo``: host memory over TCP, a group of two for each pair."""

from __future__ import annotations

import itertools
import time
from datetime import timedelta
from functools import lru_cache
from typing import Any

import torch
from torch import distributed as dist

from launcher.bridge.transport.base import (
    Buffers,
    DirectRecvWire,
    DirectSendWire,
    Meeting,
    Pair,
    RecvWire,
    SendWire,
    Transfer,
)
from launcher.bridge.transport.rendezvous import at_store, explained
from launcher.common.errors import TransferError

SENDER, RECEIVER = 0, 1
LONGEST = timedelta(days=365)


class GlooTransfer(Transfer):
    """A posted operation of a group."""

    def __init__(self, work: Any, buffer: torch.Tensor) -> None:
        self._work = work
        self._buffer = buffer

    def poll(self, deadline: float) -> torch.Tensor:
        # Point-to-point operations make progress only while somebody waits for them.
        left = min(LONGEST, timedelta(seconds=max(0.001, deadline - time.monotonic())))
        with explained():
            if not self._work.wait(left):
                raise TransferError("did not complete within its deadline.")
        return self._buffer


class _Lent(GlooTransfer):
    def __init__(self, work: Any, buffer: torch.Tensor, buffers: Buffers) -> None:
        super().__init__(work, buffer)
        self._buffers = buffers


class _SentByGloo(_Lent):
    def poll(self, deadline: float) -> torch.Tensor:
        buffer = super().poll(deadline)
        self._buffers.give(buffer)
        return buffer


class _ReceivedByGloo(_Lent):
    def release(self) -> None:
        self._buffers.give(self._buffer)


class GlooSender(DirectSendWire):
    """The sending end."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self._tags = itertools.count()
        self._buffers = Buffers(torch.device("cpu"))

    def buffer(self, nbytes: int, deadline: float) -> torch.Tensor:
        return self._buffers.take(nbytes)

    def post_send(self, buffer: torch.Tensor) -> Transfer:
        with explained():
            return _SentByGloo(self._group.send([buffer], RECEIVER, next(self._tags)), buffer, self._buffers)

    def post_send_from(self, content: torch.Tensor) -> Transfer:
        with explained():
            return GlooTransfer(self._group.send([content], RECEIVER, next(self._tags)), content)

    def abort(self) -> None:
        self._buffers.clear()
        self._group.abort()


class GlooReceiver(DirectRecvWire):
    """The receiving end. gloo continues to write into a posted buffer after an abort, until the message ends."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self._tags = itertools.count()
        self._buffers = Buffers(torch.device("cpu"))

    def post_recv(self, nbytes: int) -> Transfer:
        buffer = self._buffers.take(nbytes)
        with explained():
            return _ReceivedByGloo(self._group.recv([buffer], SENDER, next(self._tags)), buffer, self._buffers)

    def post_recv_into(self, target: torch.Tensor) -> Transfer:
        with explained():
            return GlooTransfer(self._group.recv([target], SENDER, next(self._tags)), target)

    def abort(self) -> None:
        self._buffers.clear()
        self._group.abort()


def connect_sender(meeting: Meeting, pair: Pair) -> SendWire:
    """Waits for the receiver.

    Raises:
        RendezvousTimeout: it does not come.
    """
    return GlooSender(_group(meeting, pair, SENDER))


def connect_receiver(meeting: Meeting, pair: Pair) -> RecvWire:
    """Waits for the sender.

    Raises:
        RendezvousTimeout: it does not come.
    """
    return GlooReceiver(_group(meeting, pair, RECEIVER))


def _group(meeting: Meeting, pair: Pair, rank: int) -> Any:
    with at_store(meeting, pair) as store:
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = timedelta(seconds=meeting.timeout_s)
        options._devices = [_device(meeting.address)]
        options._threads = 1
        return dist.ProcessGroupGloo(store, rank, 2, options)


@lru_cache(maxsize=8)
def _device(address: str | None) -> Any:
    """Every wire of a process listens on one socket and is served by one thread."""
    if address is None:
        return dist.ProcessGroupGloo.create_default_device()
    return dist.ProcessGroupGloo.create_device(hostname=address)

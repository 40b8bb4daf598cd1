"""``nccl``: GPU memory between nodes, a communicator of two for each pair."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

import torch
from torch import distributed as dist

from launcher.bridge.groups import NEVER, errors_left_to_us
from launcher.bridge.transport.base import Meeting, Pair, RecvWire, SendWire, Transfer
from launcher.bridge.transport.buffers import Buffers
from launcher.bridge.transport.rendezvous import at_store, explained
from launcher.common.errors import TransferError

SENDER, RECEIVER = 0, 1
POLL_S = 0.00002
LONGEST_POLL_S = 0.005
LATER = 0.05
"""How much later than it is complete an operation may be seen to be, as a share of what it took."""

CHANNELS_VARIABLE = "LAUNCHER_BRIDGE_NCCL_CHANNELS"
CHANNELS = 8
"""Most channels of a communicator, which bounds its buffers. A network card needs few; only NVLink would
need more."""


class NcclTransfer(Transfer):
    """A posted operation of a communicator."""

    def __init__(self, work: Any, buffer: torch.Tensor, buffers: Buffers) -> None:
        self._work = work
        self._buffer = buffer
        self._buffers = buffers

    def poll(self, deadline: float) -> torch.Tensor:
        # NCCL's own wait only orders streams and never times out on the host.
        begin = time.monotonic()
        with explained():
            while not self._work.is_completed():
                if time.monotonic() > deadline:
                    raise TransferError("did not complete within its deadline.")
                time.sleep(min(max(POLL_S, LATER * (time.monotonic() - begin)), LONGEST_POLL_S))
            self._work.wait()
            if self._buffers.cleared:  # An operation that is aborted counts as complete.
                raise TransferError("failed: this end has left.")
        return self._buffer


class _Sent(NcclTransfer):
    def poll(self, deadline: float) -> torch.Tensor:
        buffer = super().poll(deadline)
        self._buffers.give(buffer)
        return buffer


class _Received(NcclTransfer):
    def release(self) -> None:
        self._buffers.give(self._buffer)


class NcclSender(SendWire):
    """The sending end."""

    def __init__(self, group: Any, device: torch.device) -> None:
        self._group = group
        self._tags = itertools.count()
        self._buffers = Buffers(device)

    def buffer(self, nbytes: int, deadline: float) -> torch.Tensor:
        return self._buffers.take(nbytes)

    def post_send(self, buffer: torch.Tensor) -> Transfer:
        with explained():
            return _Sent(self._group.send([buffer], RECEIVER, next(self._tags)), buffer, self._buffers)

    def abort(self) -> None:
        self._buffers.clear()
        self._group.abort()


class NcclReceiver(RecvWire):
    """The receiving end."""

    def __init__(self, group: Any, device: torch.device) -> None:
        self._group = group
        self._tags = itertools.count()
        self._buffers = Buffers(device)

    def post_recv(self, nbytes: int) -> Transfer:
        buffer = self._buffers.take(nbytes)
        with explained():
            return _Received(self._group.recv([buffer], SENDER, next(self._tags)), buffer, self._buffers)

    def abort(self) -> None:
        self._buffers.clear()
        self._group.abort()


def connect_sender(meeting: Meeting, pair: Pair, device: torch.device) -> SendWire:
    """Waits for the receiver, in a call that may have no end: never to be made by the main thread.

    Raises:
        RendezvousTimeout: it does not come.
    """
    group = _group(meeting, pair, SENDER, device)
    wire = NcclSender(group, device)
    _first(wire.post_send(torch.zeros(1, dtype=torch.uint8, device=device)), meeting)
    return wire


def connect_receiver(meeting: Meeting, pair: Pair, device: torch.device) -> RecvWire:
    """Waits for the sender, in a call that may have no end: never to be made by the main thread.

    Raises:
        RendezvousTimeout: it does not come.
    """
    group = _group(meeting, pair, RECEIVER, device)
    wire = NcclReceiver(group, device)
    _first(wire.post_recv(1), meeting)
    return wire


def _first(transfer: Transfer, meeting: Meeting) -> None:
    # Only now do the two connect, as torch makes a communicator for a pair with its first message.
    transfer.poll(time.monotonic() + meeting.timeout_s)


def _group(meeting: Meeting, pair: Pair, rank: int, device: torch.device) -> Any:
    torch.cuda.set_device(device)
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = NEVER
    options.config.max_ctas = int(os.environ.get(CHANNELS_VARIABLE, CHANNELS))
    with at_store(meeting, pair) as store, errors_left_to_us():
        return dist.ProcessGroupNCCL(store, rank, 2, options)

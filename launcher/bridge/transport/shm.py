"""``shm``: shared host memory without a name, handed over as an open file; the kernel frees it with its last user.

The memory is a ring of slots; a byte over a Unix socket tells the other end that a slot is full, or free.
"""

from __future__ import annotations

import mmap
import os
import threading
import time

import torch

from launcher.bridge.transport import unix_connection
from launcher.bridge.transport.base import Meeting, Pair, RecvWire, SendWire, Transfer
from launcher.bridge.transport.unix_connection import UnixConnection
from launcher.common.errors import BridgeError, TransferError, TransportUnavailable

SLOTS = 4
"""So that the sender packs one message while the receiver unpacks another: staging is twice the largest message."""

TOKEN = b"x"
SEND_S = 10.0
"""For one byte to find room in a socket's buffer; only an end that reads nothing for thousands of messages fills it."""


def slot_size(largest: int) -> int:
    """Bytes from one slot to the next: whole pages."""
    return max(4096, -(-largest // 4096) * 4096)


class Shared:
    """Slots in a mapping of an open file of memory."""

    def __init__(self, fd: int, slots: int, slot_bytes: int) -> None:
        self.slots, self.slot_bytes = slots, slot_bytes
        self._bytes: torch.Tensor | None = torch.frombuffer(mmap.mmap(fd, slots * slot_bytes), dtype=torch.uint8)

    def view(self, slot: int, nbytes: int) -> torch.Tensor:
        """The first bytes of a slot: uint8, shape (nbytes,)."""
        whole = self._bytes
        if whole is None:
            raise TransferError("failed: this end has left.")
        return whole[slot * self.slot_bytes : slot * self.slot_bytes + nbytes]

    def close(self) -> None:
        """Unmaps it; whoever still holds a view keeps its bytes."""
        # The memory is unmapped with the last tensor that views it.
        self._bytes = None


class RingSender(SendWire):
    """The sending end."""

    def __init__(self, connection: UnixConnection, memory: Shared) -> None:
        self._connection = connection
        self._memory = memory
        self._posted = 0
        self._freed = 0
        self._left = threading.Lock()
        self._closed = False

    def buffer(self, nbytes: int, deadline: float) -> torch.Tensor:
        if nbytes > self._memory.slot_bytes:
            raise TransferError(f"failed: {nbytes} bytes do not fit in a slot of {self._memory.slot_bytes}.")
        self.wait_freed(self._posted - self._memory.slots + 1, deadline)
        return self._memory.view(self._posted % self._memory.slots, nbytes)

    def post_send(self, buffer: torch.Tensor) -> Transfer:
        self._connection.send(TOKEN, time.monotonic() + SEND_S)
        self._posted += 1
        return _SentSlot(self, self._posted, buffer)

    def wait_freed(self, count: int, deadline: float) -> None:
        """Until the receiver has released so many messages."""
        while self._freed < count:
            self._freed += len(self._connection.receive(deadline))

    def abort(self) -> None:
        with self._left:
            if not self._closed:
                self._closed = True
                self._connection.close()
                self._memory.close()


class _SentSlot(Transfer):
    def __init__(self, wire: RingSender, count: int, buffer: torch.Tensor) -> None:
        self._wire = wire
        self._count = count
        self._buffer = buffer

    def poll(self, deadline: float) -> torch.Tensor:
        self._wire.wait_freed(self._count, deadline)
        return self._buffer


class RingReceiver(RecvWire):
    """The receiving end."""

    def __init__(self, connection: UnixConnection, memory: Shared) -> None:
        self._connection = connection
        self._memory = memory
        self._posted = 0
        self._arrived = 0
        self._left = threading.Lock()
        self._closed = False

    def post_recv(self, nbytes: int) -> Transfer:
        if nbytes > self._memory.slot_bytes:
            raise TransferError(f"failed: {nbytes} bytes do not fit in a slot of {self._memory.slot_bytes}.")
        self._posted += 1
        return _ReceivedSlot(self, self._posted - 1, nbytes)

    def take(self, number: int, nbytes: int, deadline: float) -> torch.Tensor:
        """Waits for a message, counted from 0."""
        while self._arrived <= number:
            self._arrived += len(self._connection.receive(deadline))
        return self._memory.view(number % self._memory.slots, nbytes)

    def give_back(self) -> None:
        """The oldest message has been read."""
        self._connection.send(TOKEN, time.monotonic() + SEND_S)

    def abort(self) -> None:
        with self._left:
            if not self._closed:
                self._closed = True
                self._connection.close()
                self._memory.close()


class _ReceivedSlot(Transfer):
    def __init__(self, wire: RingReceiver, number: int, nbytes: int) -> None:
        self._wire = wire
        self._number = number
        self._nbytes = nbytes

    def poll(self, deadline: float) -> torch.Tensor:
        return self._wire.take(self._number, self._nbytes, deadline)

    def release(self) -> None:
        self._wire.give_back()


def connect_sender(meeting: Meeting, pair: Pair, largest: int) -> SendWire:
    """Waits for the receiver and hands it the memory.

    Args:
        largest: bytes of the largest message.

    Raises:
        RendezvousTimeout: it does not come.
        TransportUnavailable: there is not enough memory.
    """
    deadline = time.monotonic() + meeting.timeout_s
    connection = unix_connection.connect(meeting, pair)
    slot_bytes = slot_size(largest)
    fd = os.memfd_create("launcher-bridge", os.MFD_CLOEXEC)
    try:
        # Reserve the memory now: without it, a later write would end the process with SIGBUS.
        try:
            os.posix_fallocate(fd, 0, SLOTS * slot_bytes)
        except OSError as error:
            problem = f"No {SLOTS * slot_bytes} bytes of shared memory: {error}. HINT: set `bridge.transport=gloo`."
            connection.send_json({"error": problem}, deadline)
            raise TransportUnavailable(problem) from error
        connection.send_json({"slots": SLOTS, "slot_bytes": slot_bytes}, deadline, (fd,))
        connection.recv_json(deadline)
        return RingSender(connection, Shared(fd, SLOTS, slot_bytes))
    except BridgeError:
        connection.close()
        raise
    finally:
        os.close(fd)


def connect_receiver(meeting: Meeting, pair: Pair) -> RecvWire:
    """Waits for the sender and maps its memory.

    Raises:
        RendezvousTimeout: it does not come.
        TransportUnavailable: it has no memory for that.
    """
    deadline = time.monotonic() + meeting.timeout_s
    connection = unix_connection.accept(meeting, pair)
    try:
        words, fds = connection.recv_json(deadline, fds=1)
        if "error" in words:
            raise TransportUnavailable(f"Trainer rank {pair.sender}: {words['error']}")
        memory = Shared(fds[0], int(words["slots"]), int(words["slot_bytes"]))
        os.close(fds[0])
        connection.send_json({}, deadline)
        return RingReceiver(connection, memory)
    except BridgeError:
        connection.close()
        raise

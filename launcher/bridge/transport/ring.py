"""Messages in a ring of slots that both ends can reach; a byte over a line says that a slot is full, or free."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from launcher.bridge.transport.base import RecvWire, SendWire, Transfer
from launcher.common.errors import TransferError

if TYPE_CHECKING:
    import torch

    from launcher.bridge.transport.unix_connection import UnixConnection

SLOTS = 4
"""So that the sender packs one message while the receiver unpacks another: staging is twice the largest message."""

TOKEN = b"x"
SAY_S = 10.0
"""For one byte to find room in a socket's buffer; only an end that reads nothing for thousands of messages fills it."""


def slot_size(largest: int) -> int:
    """Bytes from one slot to the next: whole pages."""
    return max(4096, -(-largest // 4096) * 4096)


class SlotMemory(ABC):
    """The slots."""

    slots: int
    slot_bytes: int

    @abstractmethod
    def view(self, slot: int, nbytes: int) -> torch.Tensor:
        """The first bytes of a slot: uint8, shape (nbytes,)."""

    @abstractmethod
    def close(self) -> None:
        """Gives them back. Whoever still holds a view keeps its bytes, if they are host memory."""

    def written(self) -> None:  # noqa: B027
        """Returns once what the current stream does is done, so that the other process may look."""

    def read(self) -> None:  # noqa: B027
        """Returns once what the current stream does is done, so that the other process may write."""


class RingSender(SendWire):
    """The sending end."""

    def __init__(self, connection: UnixConnection, memory: SlotMemory) -> None:
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
        self._memory.written()
        self._connection.send(TOKEN, time.monotonic() + SAY_S)
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

    def __init__(self, connection: UnixConnection, memory: SlotMemory) -> None:
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
        self._memory.read()
        self._connection.send(TOKEN, time.monotonic() + SAY_S)

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

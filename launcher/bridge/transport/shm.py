"""``shm``: shared host memory without a name, handed over as an open file; the kernel frees it with its last user."""

from __future__ import annotations

import mmap
import os
import time

import torch

from launcher.bridge.transport import unix_connection
from launcher.bridge.transport.base import Meeting, Pair, RecvWire, SendWire
from launcher.bridge.transport.ring import SLOTS, RingReceiver, RingSender, SlotMemory, slot_size
from launcher.common.errors import BridgeError, TransferError, TransportUnavailable


class Shared(SlotMemory):
    """A mapping of an open file of memory."""

    def __init__(self, fd: int, slots: int, slot_bytes: int) -> None:
        self.slots, self.slot_bytes = slots, slot_bytes
        self._bytes: torch.Tensor | None = torch.frombuffer(mmap.mmap(fd, slots * slot_bytes), dtype=torch.uint8)

    def view(self, slot: int, nbytes: int) -> torch.Tensor:
        whole = self._bytes
        if whole is None:
            raise TransferError("failed: this end has left.")
        return whole[slot * self.slot_bytes : slot * self.slot_bytes + nbytes]

    def close(self) -> None:
        # The mapping goes with the last tensor that looks into it.
        self._bytes = None


def connect_sender(meeting: Meeting, pair: Pair, largest: int) -> SendWire:
    """Waits for the receiver and hands it the memory.

    Args:
        largest: bytes of the largest message.

    Raises:
        RendezvousTimeout: it does not come.
        TransportUnavailable: there is not enough memory.
    """
    deadline = time.monotonic() + meeting.timeout_s
    wire = unix_connection.connect(meeting, pair)
    slot_bytes = slot_size(largest)
    fd = os.memfd_create("launcher-bridge", os.MFD_CLOEXEC)
    try:
        # Now, as an error here, rather than later, as a signal.
        try:
            os.posix_fallocate(fd, 0, SLOTS * slot_bytes)
        except OSError as error:
            problem = f"No {SLOTS * slot_bytes} bytes of shared memory: {error}. HINT: set `bridge.transport=gloo`."
            wire.send_json({"error": problem}, deadline)
            raise TransportUnavailable(problem) from error
        wire.send_json({"slots": SLOTS, "slot_bytes": slot_bytes}, deadline, (fd,))
        wire.recv_json(deadline)
        return RingSender(wire, Shared(fd, SLOTS, slot_bytes))
    except BridgeError:
        wire.close()
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
    wire = unix_connection.accept(meeting, pair)
    try:
        words, fds = wire.recv_json(deadline, fds=1)
        if "error" in words:
            raise TransportUnavailable(f"Trainer rank {pair.sender}: {words['error']}")
        memory = Shared(fds[0], int(words["slots"]), int(words["slot_bytes"]))
        os.close(fds[0])
        wire.send_json({}, deadline)
        return RingReceiver(wire, memory)
    except BridgeError:
        wire.close()
        raise

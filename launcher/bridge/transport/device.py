"""``peer`` and ``ipc``: between two processes on one host's GPUs, through memory of the sender that the receiver maps.

With ``ipc``, on one GPU, the receiver unpacks straight from the sender's slots. With ``peer`` it copies them to its own
GPU first: the mapping is made for the GPU that copies, so that its copy engines do it, beside the engine's kernels. A
message is copied while the one before it is unpacked.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque

import torch

from launcher.bridge.transport import cudart
from launcher.bridge.transport import unix_connection as line
from launcher.bridge.transport.base import Meeting, Pair, RecvWire, SendWire, Transfer
from launcher.bridge.transport.ring import SAY_S, TOKEN, Memory, RingReceiver, RingSender, slot_size
from launcher.common.errors import BridgeError, NoSuchWay, TransferError

SLOTS = 4
"""So that what the host does for a message, on either side, hides behind the copies of others."""

POLL_S = 0.00002
LATE = "did not complete within its deadline."
LEFT = "failed: this end has left."


class Own(Memory):
    """The sender's slots. They are freed only when nobody has them mapped, which may be after the wire was left."""

    def __init__(self, device: torch.device, slot_bytes: int) -> None:
        self.slots, self.slot_bytes = SLOTS, slot_bytes
        self._device = device
        self._pointer = cudart.allocate(device, SLOTS * slot_bytes)
        self.handle = cudart.handle(self._pointer)
        self._bytes = cudart.tensor_at(self._pointer, SLOTS * slot_bytes, device)
        # The receiver alone has the other end, and it is closed with the mapping: by the receiver, or by its death.
        self._life, self.others_life = os.pipe()
        self._in_use = threading.Lock()
        self._closed = False

    def view(self, slot: int, nbytes: int) -> torch.Tensor:
        # Held until it is posted: nothing is freed while it is written into.
        if self._closed or not self._in_use.acquire(blocking=False):
            raise TransferError(LEFT)
        return self._bytes[slot * self.slot_bytes : slot * self.slot_bytes + nbytes]

    def written(self) -> None:
        try:
            torch.cuda.current_stream(self._device).synchronize()
        finally:
            self._in_use.release()

    def handed_over(self) -> None:
        """The receiver has the other end of its life, and nobody else may."""
        if self.others_life >= 0:
            os.close(self.others_life)
            self.others_life = -1

    def close(self) -> None:
        self._closed = True
        self.handed_over()
        threading.Thread(target=self._free, name="bridge-free", daemon=True).start()

    def _free(self) -> None:
        poller = select.poll()
        poller.register(self._life, select.POLLIN)
        poller.poll()
        with self._in_use:
            torch.cuda.synchronize(self._device)
            cudart.free(self._device, self._pointer)
        os.close(self._life)


class Mapped(Memory):
    """The sender's slots as the receiver sees them."""

    def __init__(self, device: torch.device, handle: bytes, slots: int, slot_bytes: int, life: int) -> None:
        self.slots, self.slot_bytes = slots, slot_bytes
        self._device = device
        self._life = life
        self._pointer: int | None = cudart.map_handle(device, handle)

    def address(self, slot: int) -> int:
        """Where a slot begins."""
        if self._pointer is None:
            raise TransferError(LEFT)
        return self._pointer + slot * self.slot_bytes

    def view(self, slot: int, nbytes: int) -> torch.Tensor:
        if nbytes == 0:
            return torch.empty(0, dtype=torch.uint8, device=self._device)
        return cudart.tensor_at(self.address(slot), nbytes, self._device)

    def read(self) -> None:
        torch.cuda.current_stream(self._device).synchronize()

    def close(self) -> None:
        if self._pointer is not None:
            pointer, self._pointer = self._pointer, None
            torch.cuda.synchronize(self._device)
            cudart.unmap(self._device, pointer)
            os.close(self._life)


class PeerReceiver(RecvWire):
    """The receiving end on another GPU than the sender's: copies every message to slots of its own."""

    def __init__(self, end: line.Line, memory: Mapped, device: torch.device) -> None:
        self._line = end
        self._memory = memory
        self._device = device
        self._own = torch.empty(SLOTS * memory.slot_bytes, dtype=torch.uint8, device=device)
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._free: list[torch.cuda.Event | None] = [None] * SLOTS
        self._posted = self._arrived = self._started = self._released = 0
        self._copies: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()
        self._sizes: deque[int] = deque()
        self._using = threading.Lock()
        self._closed = False

    def post_recv(self, nbytes: int) -> Transfer:
        if nbytes > self._memory.slot_bytes:
            raise TransferError(f"failed: {nbytes} bytes do not fit in a slot of {self._memory.slot_bytes}.")
        self._posted += 1
        self._sizes.append(nbytes)
        return _Copied(self)

    def take(self, deadline: float) -> torch.Tensor:
        """The oldest message that has not been taken; those after it may be copied already."""
        while not self._copies:
            while self._arrived <= self._started:
                self._arrived += len(self._line.receive(deadline))
            self._start()
        copied, view = self._copies[0]
        while not copied.query():  # type: ignore[no-untyped-call]
            if time.monotonic() > deadline:
                raise TransferError(LATE)
            self._arrived += self._line.waiting()
            self._start()
            time.sleep(POLL_S)
        self._copies.popleft()
        self._line.send(TOKEN, time.monotonic() + SAY_S)
        return view

    def release(self) -> None:
        """The oldest message that was taken has been read, once the current stream has come so far."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._free[self._released % SLOTS] = event
        self._released += 1

    def abort(self) -> None:
        self._line.close()
        with self._using:
            if not self._closed:
                self._closed = True
                self._memory.close()
                self._own = self._own[:0]

    def _start(self) -> None:
        """Enqueues the copies of messages that are there and wanted, as far as there are free slots."""
        with self._using:
            if self._closed:
                raise TransferError(LEFT)
            while self._started < min(self._arrived, self._posted, self._released + SLOTS):
                slot = self._started % SLOTS
                nbytes = self._sizes.popleft()
                free = self._free[slot]
                if free is not None:
                    self._stream.wait_event(free)
                begin = slot * self._memory.slot_bytes
                view = self._own[begin : begin + nbytes]
                if nbytes:
                    source = self._memory.address(self._started % self._memory.slots)
                    cudart.copy(view.data_ptr(), source, nbytes, self._stream)
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record(self._stream)
                self._copies.append((event, view))
                self._started += 1


class _Copied(Transfer):
    def __init__(self, wire: PeerReceiver) -> None:
        self._wire = wire

    def poll(self, deadline: float) -> torch.Tensor:
        return self._wire.take(deadline)

    def release(self) -> None:
        self._wire.release()


def connect_sender(meeting: Meeting, pair: Pair, largest: int, device: torch.device) -> SendWire:
    """Waits for the receiver and hands it the slots.

    Raises:
        RendezvousTimeout: it does not come.
        NoSuchWay: there is not enough memory, or the receiver cannot map it.
    """
    deadline = time.monotonic() + meeting.timeout_s
    torch.cuda.set_device(device)
    end = line.call(meeting, pair)
    try:
        memory = Own(device, slot_size(largest))
    except BridgeError as error:
        with contextlib.suppress(TransferError):  # It is gone, too.
            end.say({"error": str(error)}, deadline)
        end.close()
        raise NoSuchWay(f"Trainer rank {pair.sender} has no slots on its GPU: {error}") from error
    try:
        words = {"slots": SLOTS, "slot_bytes": memory.slot_bytes, "handle": memory.handle.hex()}
        end.say(words, deadline, (memory.others_life,))
        memory.handed_over()
        refusal = end.hear(deadline)[0].get("error")
        if refusal is not None:
            raise NoSuchWay(f"Worker {pair.receiver} cannot map trainer rank {pair.sender}'s GPU memory: {refusal}")
        return RingSender(end, memory)
    except BridgeError:
        end.close()
        memory.close()
        raise


def connect_receiver(meeting: Meeting, pair: Pair, device: torch.device, *, same_gpu: bool) -> RecvWire:
    """Waits for the sender and maps its slots.

    Raises:
        RendezvousTimeout: it does not come.
        NoSuchWay: it has no memory, or that cannot be mapped: the two GPUs have no access to each other.
    """
    deadline = time.monotonic() + meeting.timeout_s
    torch.cuda.set_device(device)
    end = line.answer(meeting, pair)
    try:
        words, fds = end.hear(deadline, fds=1)
        if "error" in words:
            raise NoSuchWay(f"Trainer rank {pair.sender} has no slots on its GPU: {words['error']}")
        try:
            handle = bytes.fromhex(words["handle"])
            memory = Mapped(device, handle, int(words["slots"]), int(words["slot_bytes"]), fds[0])
        except BridgeError as error:
            os.close(fds[0])
            end.say({"error": str(error)}, deadline)
            raise NoSuchWay(f"Trainer rank {pair.sender}'s GPU memory cannot be mapped: {error}") from error
        end.say({}, deadline)
        return RingReceiver(end, memory) if same_gpu else PeerReceiver(end, memory, device)
    except BridgeError:
        end.close()
        raise

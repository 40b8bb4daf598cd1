"""``peer`` and ``ipc``: between two processes on one host's GPUs, out of the sender's memory, which the receiver maps.

What is mapped is mapped for the GPU that copies, so that its copy engines do it, beside the engine's kernels. With
``ipc``, on one GPU, what has been packed is unpacked straight from the sender's memory; with ``peer`` it is copied to
the receiver's GPU first.
"""

from __future__ import annotations

import contextlib
import os
import time

import torch

from launcher.bridge.transport import cudart, unix_connection
from launcher.bridge.transport.base import Buffers, Meeting, MemoryRegion, Pair, RecvWire, SendWire
from launcher.bridge.transport.mapped_memory import Allocation, CopyMark, ExportedMemory, MappedMemory, Slot
from launcher.bridge.transport.mapped_receiver import MappedReceiver
from launcher.bridge.transport.mapped_sender import SLOT_BYTES, MappedSender
from launcher.common.errors import BridgeError, TransferError, TransportUnavailable


class ExportedGpuMemory(ExportedMemory):
    """A GPU's memory at the sender: torch's own allocations, and slots beside them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def find(self, address: int) -> Allocation | None:
        found = cudart.allocation_at(address)
        return None if found is None else Allocation(found.identity, found.base, found.nbytes)

    def export(self, allocation: Allocation) -> bytes | None:
        # What torch makes of several pieces (``expandable_segments``), or takes from a pool, has no such handle.
        try:
            return cudart.handle(allocation.base)
        except TransferError:
            return None

    def allocate(self, nbytes: int) -> Slot:
        pointer = cudart.allocate(self.device, nbytes)
        allocation = self.find(pointer)
        if allocation is None:
            cudart.free(self.device, pointer)
            raise TransferError("failed: the driver does not know its own allocation.")
        return Slot(content=cudart.tensor_at(pointer, nbytes, self.device), allocation=allocation)

    def free(self, slot: Slot) -> None:
        torch.cuda.synchronize(self.device)
        cudart.free(self.device, slot.allocation.base)

    def settle(self) -> None:
        torch.cuda.current_stream(self.device).synchronize()


class _EventMark(CopyMark):
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._event = stream.record_event()

    def is_done(self) -> bool:
        return bool(self._event.query())


class MappedGpuMemory(MappedMemory):
    """The sender's memory as the receiver's GPU sees it, and a stream of the receiver's for the copies."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # One: measured between two H100, more streams were no faster.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._staging = Buffers(device)

    def map(self, handle: bytes, nbytes: int) -> int:
        return cudart.map_handle(self._device, handle)

    def unmap(self, address: int, nbytes: int) -> None:
        cudart.unmap(self._device, address)

    def copy(self, target: MemoryRegion, source: MemoryRegion) -> None:
        if source.rows == 1:
            cudart.copy(target.address, source.address, source.width, self._stream)
        else:
            pitches = (target.pitch, source.address, source.pitch)
            cudart.copy_rows(target.address, *pitches, source.width, source.rows, self._stream)

    def mark(self) -> CopyMark:
        return _EventMark(self._stream)

    def synchronize(self) -> None:
        torch.cuda.current_stream(self._device).synchronize()
        self._stream.synchronize()

    def stage(self, nbytes: int) -> torch.Tensor:
        staged = self._staging.take(nbytes)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return staged

    def unstage(self, staged: torch.Tensor) -> None:
        self._staging.give(staged)

    def view(self, address: int, nbytes: int) -> torch.Tensor:
        return cudart.tensor_at(address, nbytes, self._device)

    def close(self) -> None:
        self._staging.clear()


def connect_sender(meeting: Meeting, pair: Pair, device: torch.device) -> SendWire:
    """Waits for the receiver, which maps a first piece of memory.

    Raises:
        RendezvousTimeout: it does not come.
        TransportUnavailable: there is not enough memory, or the receiver cannot map it.
    """
    deadline = time.monotonic() + meeting.timeout_s
    torch.cuda.set_device(device)
    end = unix_connection.connect(meeting, pair)
    memory = ExportedGpuMemory(device)
    try:
        first = memory.allocate(SLOT_BYTES)
    except BridgeError as error:
        with contextlib.suppress(TransferError):  # The receiver is gone, too.
            end.send_json({"error": str(error)}, deadline)
        end.close()
        raise TransportUnavailable(f"Trainer rank {pair.sender} has no memory on its GPU: {error}") from error
    # The receiver alone has the other end, and it is closed with the mappings: by the receiver, or by its death.
    life, others_life = os.pipe()
    wire = MappedSender(end, memory, first, life)
    try:
        handle = memory.export(first.allocation)
        if handle is None:
            problem = "its memory cannot be handed to another process"
            end.send_json({"error": problem}, deadline)
            raise TransportUnavailable(f"Trainer rank {pair.sender}: {problem}.")
        words = {"number": first.allocation.number, "nbytes": first.allocation.nbytes, "handle": handle.hex()}
        end.send_json(words, deadline, (others_life,))
        os.close(others_life)
        others_life = -1
        refusal = end.recv_json(deadline)[0].get("error")
        if refusal is not None:
            raise TransportUnavailable(
                f"Worker {pair.receiver} cannot map trainer rank {pair.sender}'s GPU memory: {refusal}"
            )
        return wire
    except BridgeError:
        wire.abort()
        raise
    finally:
        if others_life >= 0:
            os.close(others_life)


def connect_receiver(meeting: Meeting, pair: Pair, device: torch.device, *, same_gpu: bool) -> RecvWire:
    """Waits for the sender and maps a first piece of its memory.

    Raises:
        RendezvousTimeout: it does not come.
        TransportUnavailable: it has no memory, or that cannot be mapped: the two GPUs have no access to each other.
    """
    deadline = time.monotonic() + meeting.timeout_s
    torch.cuda.set_device(device)
    end = unix_connection.accept(meeting, pair)
    try:
        words, fds = end.recv_json(deadline, fds=1)
        if "error" in words:
            raise TransportUnavailable(f"Trainer rank {pair.sender} has no memory on its GPU: {words['error']}")
        number, nbytes = int(words["number"]), int(words["nbytes"])
        memory = MappedGpuMemory(device)
        try:
            address = memory.map(bytes.fromhex(words["handle"]), nbytes)
        except BridgeError as error:
            os.close(fds[0])
            end.send_json({"error": str(error)}, deadline)
            raise TransportUnavailable(f"Trainer rank {pair.sender}'s GPU memory cannot be mapped: {error}") from error
        end.send_json({}, deadline)
        return MappedReceiver(end, memory, (number, address, nbytes), fds[0], stages=not same_gpu)
    except BridgeError:
        end.close()
        raise

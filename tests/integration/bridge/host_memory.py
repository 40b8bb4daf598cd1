"""Host memory that another process maps, in the place of a GPU's: for the protocol of mapped wires on any machine."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import queue
import socket
import threading
from dataclasses import dataclass, field

import torch

from launcher.bridge.transport.base import MemoryRegion
from launcher.bridge.transport.mapped_memory import Allocation, CopyMark, ExportedMemory, MappedMemory, Slot
from launcher.bridge.transport.mapped_receiver import MappedReceiver
from launcher.bridge.transport.mapped_sender import MappedSender
from launcher.bridge.transport.unix_connection import UnixConnection
from launcher.common.errors import TransferError


def address_of(mapping: mmap.mmap) -> int:
    return torch.frombuffer(mapping, dtype=torch.uint8).data_ptr()


@dataclass(kw_only=True)
class HostAllocation:
    """A file of memory that this process has mapped."""

    allocation: Allocation
    fd: int
    content: torch.Tensor
    """uint8, all of it."""

    is_private: bool


@dataclass
class ExportedHostMemory(ExportedMemory):
    """Memory that the receiver maps through ``/proc``."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    allocations: dict[int, HostAllocation] = field(default_factory=dict)
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    freed: int = 0
    """Slots that were given back."""

    def make(self, nbytes: int, *, is_private: bool = False) -> HostAllocation:
        """A new allocation; one that is private cannot be mapped by others."""
        fd = os.memfd_create("launcher-test", os.MFD_CLOEXEC)
        os.ftruncate(fd, nbytes)
        content = torch.frombuffer(mmap.mmap(fd, nbytes), dtype=torch.uint8)
        allocation = Allocation(next(self.numbers), content.data_ptr(), nbytes)
        made = HostAllocation(allocation=allocation, fd=fd, content=content, is_private=is_private)
        self.allocations[allocation.number] = made
        return made

    def destroy(self, made: HostAllocation) -> None:
        """Frees an allocation, and overwrites it: who reads it later sees that."""
        del self.allocations[made.allocation.number]
        made.content.fill_(0xEE)
        os.close(made.fd)

    def find(self, address: int) -> Allocation | None:
        for made in self.allocations.values():
            if 0 <= address - made.allocation.base < made.allocation.nbytes:
                return made.allocation
        return None

    def export(self, allocation: Allocation) -> bytes | None:
        made = self.allocations[allocation.number]
        return None if made.is_private else f"/proc/{os.getpid()}/fd/{made.fd}".encode()

    def allocate(self, nbytes: int) -> Slot:
        made = self.make(nbytes)
        return Slot(content=made.content, allocation=made.allocation)

    def free(self, slot: Slot) -> None:
        self.freed += 1
        self.destroy(self.allocations[slot.allocation.number])

    def settle(self) -> None:
        """The CPU has no streams."""


class CountMark(CopyMark):
    """After so many copies."""

    def __init__(self, memory: MappedHostMemory, count: int) -> None:
        self._memory = memory
        self._count = count

    def is_done(self) -> bool:
        return self._memory.copied >= self._count


class MappedHostMemory(MappedMemory):
    """Copies in a thread, in order, as a GPU's copy engine does."""

    def __init__(self) -> None:
        self.mappings: dict[int, torch.Tensor] = {}
        self.mapped = 0
        """How often something was mapped."""

        self.may_copy = threading.Event()
        self.may_copy.set()
        self.enqueued = self.copied = 0
        self.copied_bytes = 0
        self._copies: queue.SimpleQueue[tuple[MemoryRegion, MemoryRegion]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def map(self, handle: bytes, nbytes: int) -> int:
        try:
            fd = os.open(handle, os.O_RDWR)
        except OSError as error:
            raise TransferError(f"failed: {error}") from error
        content = torch.frombuffer(mmap.mmap(fd, nbytes), dtype=torch.uint8)
        os.close(fd)
        self.mappings[content.data_ptr()] = content
        self.mapped += 1
        return content.data_ptr()

    def unmap(self, address: int, nbytes: int) -> None:
        del self.mappings[address]

    def copy(self, target: MemoryRegion, source: MemoryRegion) -> None:
        assert (target.rows, target.width) == (source.rows, source.width)
        self.enqueued += 1
        self._copies.put((target, source))

    def mark(self) -> CopyMark:
        return CountMark(self, self.enqueued)

    def synchronize(self) -> None:
        while self.copied < self.enqueued:
            threading.Event().wait(0.001)

    def stage(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def unstage(self, staged: torch.Tensor) -> None:
        """Nobody needs it again."""

    def view(self, address: int, nbytes: int) -> torch.Tensor:
        base = next(base for base, content in self.mappings.items() if 0 <= address - base < content.numel())
        return self.mappings[base][address - base : address - base + nbytes]

    def close(self) -> None:
        """It holds nothing else."""

    def _work(self) -> None:
        while True:
            target, source = self._copies.get()
            self.may_copy.wait()
            for row in range(source.rows):
                ctypes.memmove(target.address + row * target.pitch, source.address + row * source.pitch, source.width)
            self.copied_bytes += source.nbytes
            self.copied += 1


def connected(*, stages: bool = True) -> tuple[MappedSender, ExportedHostMemory, MappedReceiver, MappedHostMemory]:
    """Two ends in one process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    exported, mapped = ExportedHostMemory(), MappedHostMemory()
    first = exported.allocate(4096)
    handle = exported.export(first.allocation)
    assert handle is not None
    life, others_life = os.pipe()
    address = mapped.map(handle, first.allocation.nbytes)
    sender = MappedSender(UnixConnection(ours), exported, first, life)
    known = (first.allocation.number, address, first.allocation.nbytes)
    receiver = MappedReceiver(UnixConnection(theirs), mapped, known, others_life, stages=stages)
    return sender, exported, receiver, mapped

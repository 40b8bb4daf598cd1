"""The sender of messages that are read where they lie: announces them, and keeps their memory until they are read.

See :mod:`launcher.bridge.transport.mapped_memory` for the protocol.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launcher.bridge.transport.base import MemoryRegion, RegionSendWire, Transfer
from launcher.bridge.transport.mapped_memory import (
    GONE,
    HEAD,
    LEFT,
    NEW,
    REGION,
    SEND_S,
    Allocation,
    ExportedMemory,
    Slot,
    nothing,
    row,
)
from launcher.common.errors import TransferError

if TYPE_CHECKING:
    import torch

    from launcher.bridge.transport.unix_connection import UnixConnection

SLOTS = 4
"""Messages that the sender may have packed, wholly or in part, at a time: what the host does for one, on either side,
hides behind the copies of others."""

SLOT_BYTES = 2 << 20
"""Slots are multiples of this, the granularity in which GPU memory can be handed to another process."""


class MappedSender(RegionSendWire):
    """The sending end.

    Args:
        connection: to the receiver, which has mapped ``first``.
        memory: this side's.
        first: a slot that both ends know.
        life: read end of a pipe whose other end the receiver alone has, and closes when it has unmapped everything, or
            with its death.
    """

    def __init__(self, connection: UnixConnection, memory: ExportedMemory, first: Slot, life: int) -> None:
        self.device = memory.device
        self._connection = connection
        self._memory = memory
        self._life = life
        self._slots: list[Slot | None] = [first, *[None] * (SLOTS - 1)]
        self._known: dict[int, Allocation] = {first.allocation.number: first.allocation}
        self._new: list[tuple[Allocation, bytes]] = []
        """Not announced yet."""

        self._gone: list[int] = []
        self._unmappable: set[int] = set()
        self._found: dict[int, Allocation] = {}
        """By address, of the message at hand."""

        self._replaced: deque[tuple[int, Slot]] = deque()
        """Slots that were replaced by larger ones, with the number of the message that announces it."""

        self._posted = 0
        self._freed = 0
        self._kept: deque[Sequence[torch.Tensor]] = deque()
        """What owns the memory of messages that have not been acknowledged."""

        self._filling = threading.Lock()
        """Held from :meth:`buffer` until its content is posted: nothing is freed while it is written."""

        self._is_filling = False
        self._leaving = threading.Lock()
        self._closed = False

    def buffer(self, nbytes: int, deadline: float) -> torch.Tensor:
        self._wait_freed(self._posted - SLOTS + 1, deadline)
        if self._closed or not self._filling.acquire(blocking=False):
            raise TransferError(LEFT)
        self._is_filling = True
        try:
            return self._slot(nbytes).content[:nbytes]
        except BaseException:
            self._filled()
            raise

    def post_send(self, buffer: torch.Tensor) -> Transfer:
        nbytes = buffer.numel()
        return self.post_send_regions([row(buffer.data_ptr(), nbytes)] if nbytes else [], (buffer,))

    def reaches(self, region: MemoryRegion) -> bool:
        return self._allocation(region.address) is not None

    def post_send_regions(self, regions: Sequence[MemoryRegion], keep: Sequence[torch.Tensor]) -> Transfer:
        try:
            self._memory.settle()
            if self._closed:
                raise TransferError(LEFT)
            self._connection.send(self._announcement(regions), time.monotonic() + SEND_S)
            self._kept.append(tuple(keep))
            self._posted += 1
        finally:
            self._found.clear()
            self._filled()
        return _SentMessage(self, self._posted)

    def wait(self, number: int, deadline: float) -> None:
        """Until the receiver has read so many messages."""
        self._wait_freed(number, deadline)

    def abort(self) -> None:
        with self._leaving:
            if self._closed:
                return
            self._closed = True
        self._connection.close()
        threading.Thread(target=self._free, name="bridge-free", daemon=True).start()

    def _filled(self) -> None:
        if self._is_filling:
            self._is_filling = False
            self._filling.release()

    def _wait_freed(self, count: int, deadline: float) -> None:
        while self._freed < count:
            read = len(self._connection.receive(deadline))
            self._freed += read
            for _ in range(read):
                self._kept.popleft()
            while self._replaced and self._replaced[0][0] < self._freed:
                self._memory.free(self._replaced.popleft()[1])

    def _slot(self, nbytes: int) -> Slot:
        """The slot of the next message, large enough for it."""
        place = self._posted % SLOTS
        slot = self._slots[place]
        if slot is None or slot.content.numel() < nbytes:
            made = self._memory.allocate(-(-max(1, nbytes) // SLOT_BYTES) * SLOT_BYTES)
            if slot is not None:
                if self._known.pop(slot.allocation.number, None) is not None:
                    self._gone.append(slot.allocation.number)
                self._replaced.append((self._posted, slot))
            self._slots[place] = slot = made
        return slot

    def _announcement(self, regions: Sequence[MemoryRegion]) -> bytes:
        places = []
        for region in regions:
            allocation = self._allocation(region.address)
            if allocation is None:
                raise TransferError("failed: the receiver cannot map what is to be sent.")
            begin = region.address - allocation.base
            places.append(REGION.pack(allocation.number, begin, region.rows, region.width, region.pitch))
        if self._new:
            self._forget()
        new, self._new = self._new, []
        gone, self._gone = self._gone, []
        made = [NEW.pack(one.number, one.nbytes, len(handle)) + handle for one, handle in new]
        head = HEAD.pack(len(made), len(gone), len(places))
        return b"".join([head, *made, *map(GONE.pack, gone), *places])

    def _allocation(self, address: int) -> Allocation | None:
        """The allocation of an address, which the receiver has mapped, or will have with the next message."""
        found = self._found.get(address) or self._memory.find(address)
        if found is None or found.number in self._unmappable:
            return None
        if found.number not in self._known:
            handle = self._memory.export(found)
            if handle is None:
                self._unmappable.add(found.number)
                return None
            self._known[found.number] = found
            self._new.append((found, handle))
        self._found[address] = found
        return found

    def _forget(self) -> None:
        """Announces allocations that have been freed, so that the receiver unmaps them: a mapping keeps the memory."""
        own = {slot.allocation.number for slot in self._slots if slot is not None}
        own |= {allocation.number for allocation, _handle in self._new}
        for number, allocation in list(self._known.items()):
            if number not in own and self._memory.find(allocation.base) != allocation:
                del self._known[number]
                self._gone.append(number)

    def _free(self) -> None:
        """Frees the slots and releases the kept tensors once the receiver has unmapped everything."""
        poller = select.poll()
        poller.register(self._life, select.POLLIN)
        poller.poll()
        with self._filling:
            slots = [slot for slot in self._slots if slot is not None] + [slot for _, slot in self._replaced]
            self._slots = []
            self._replaced.clear()
            for slot in slots:
                self._memory.free(slot)
            self._kept.clear()
        os.close(self._life)


class _SentMessage(Transfer):
    def __init__(self, wire: MappedSender, number: int) -> None:
        self._wire = wire
        self._number = number

    def poll(self, deadline: float) -> torch.Tensor:
        self._wire.wait(self._number, deadline)
        return nothing()

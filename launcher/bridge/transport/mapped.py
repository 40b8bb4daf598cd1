"""Messages that are read where they lie: the receiver maps the sender's allocations and copies out of them into place.

The protocol, over a Unix socket, whatever kind of memory it is about. For each message the sender announces where its
regions lie, and the allocations that the receiver has not mapped yet; the receiver copies, and acknowledges with one
byte once it has read everything. An allocation is known by an identity that no other one ever has in the process, so
what a trainer frees and allocates anew is mapped anew, and the mapping of what is gone is ended. Between announcement
and acknowledgement the wire holds the tensors that own the memory, so nothing is read that has been freed.

An announcement: :data:`HEAD`, then for each new allocation :data:`NEW` and its handle, for each that is gone its number
(:data:`GONE`), for each region :data:`REGION`.
"""

from __future__ import annotations

import os
import select
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, NamedTuple

from launcher.bridge.transport.base import MemoryRegion, RegionRecvWire, RegionSendWire, Transfer
from launcher.common.errors import TransferError

if TYPE_CHECKING:
    import torch

    from launcher.bridge.transport.unix_connection import UnixConnection

SLOTS = 4
"""Messages that the sender may have packed, wholly or in part, at a time: what the host does for one, on either side,
hides behind the copies of others."""

SLOT_BYTES = 2 << 20
"""Slots are multiples of this, the granularity in which GPU memory can be handed to another process."""

HEAD = struct.Struct("<III")
"""New allocations, allocations that are gone, regions."""

NEW = struct.Struct("<QQI")
"""Number of an allocation, its bytes, bytes of its handle."""

GONE = struct.Struct("<Q")
REGION = struct.Struct("<QQQQQ")
"""Number of an allocation, bytes from its beginning, rows, bytes of a row, bytes from row to row."""

ACKNOWLEDGEMENT = b"x"
SEND_S = 10.0
"""For an announcement to find room in a socket's buffer; only an end that reads nothing for long fills it."""

POLL_S = 0.00002
ALIGNMENT = 16
LEFT = "failed: this end has left."
LATE = "did not complete within its deadline."


class Allocation(NamedTuple):
    """Memory that another process can map as a whole."""

    number: int
    """Identity: no other allocation of the process ever has it."""

    base: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Memory of the sender's that small and cast tensors are packed in."""

    content: torch.Tensor
    """uint8, shape (nbytes,)."""

    allocation: Allocation


class ExportedMemory(ABC):
    """The sender's side of a kind of memory."""

    device: torch.device

    @abstractmethod
    def find(self, address: int) -> Allocation | None:
        """The allocation that an address lies in; None if that cannot be told."""

    @abstractmethod
    def export(self, allocation: Allocation) -> bytes | None:
        """What the receiver maps it with; None if it cannot be mapped."""

    @abstractmethod
    def allocate(self, nbytes: int) -> Slot:
        """New memory that can be mapped.

        Raises:
            TransferError: there is none left.
        """

    @abstractmethod
    def free(self, slot: Slot) -> None:
        """Gives memory back; the receiver does not have it mapped any more."""

    @abstractmethod
    def settle(self) -> None:
        """Returns once what the current stream has been given is done, so that the receiver may read."""


class CopyMark(ABC):
    """A point in what has been enqueued."""

    @abstractmethod
    def is_done(self) -> bool:
        """Whether all copies before it are complete."""


class MappedMemory(ABC):
    """The receiver's side of a kind of memory. Copies are carried out in any order, or at the same time."""

    @abstractmethod
    def map(self, handle: bytes, nbytes: int) -> int:
        """Address of the sender's memory.

        Raises:
            TransferError: it cannot be mapped.
        """

    @abstractmethod
    def unmap(self, address: int, nbytes: int) -> None:
        """Ends a mapping; nothing reads it any more."""

    @abstractmethod
    def copy(self, target: MemoryRegion, source: MemoryRegion) -> None:
        """Enqueues a copy between regions that have the same rows and width."""

    @abstractmethod
    def mark(self) -> CopyMark:
        """The point after what has been enqueued so far."""

    @abstractmethod
    def synchronize(self) -> None:
        """Returns once all copies, and what the current stream has been given, are done."""

    @abstractmethod
    def stage(self, nbytes: int) -> torch.Tensor:
        """Memory for regions that do not come to where they belong: uint8, shape (nbytes,). Copies into it wait until
        what the current stream has been given is done."""

    @abstractmethod
    def unstage(self, staged: torch.Tensor) -> None:
        """Takes it back; the current stream has been given the last that reads it."""

    @abstractmethod
    def view(self, address: int, nbytes: int) -> torch.Tensor:
        """The sender's memory as a tensor: uint8, shape (nbytes,)."""

    @abstractmethod
    def close(self) -> None:
        """Frees what was staged."""


def copies(target: MemoryRegion, source: MemoryRegion) -> Iterator[tuple[MemoryRegion, MemoryRegion]]:
    """Pairs of regions of equal rows and width that make up a copy of ``source`` to ``target``, byte after byte."""
    if source.is_contiguous and target.is_contiguous:
        yield _row(target.address, target.nbytes), _row(source.address, source.nbytes)
        return
    if source.is_contiguous or target.is_contiguous or source.width == target.width:
        shape = source if target.is_contiguous else target
        yield _like(target, shape), _like(source, shape)
        return
    # Rows of both are made of pieces of one length; this is rare, and need not be fast.
    width = gcd(source.width, target.width)
    for index in range(source.nbytes // width):
        yield _piece(target, index * width, width), _piece(source, index * width, width)


def _row(address: int, nbytes: int) -> MemoryRegion:
    return MemoryRegion(address=address, rows=1, width=nbytes, pitch=nbytes)


def _like(region: MemoryRegion, shape: MemoryRegion) -> MemoryRegion:
    """The region in rows of another's width; its own pitch if it has gaps."""
    pitch = shape.width if region.is_contiguous else region.pitch
    return MemoryRegion(address=region.address, rows=shape.rows, width=shape.width, pitch=pitch)


def _piece(region: MemoryRegion, begin: int, width: int) -> MemoryRegion:
    row, column = divmod(begin, region.width)
    return _row(region.address + row * region.pitch + column, width)


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
        """Slots that gave way to larger ones, and the message with which the receiver learns it."""

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
        return self.post_send_regions([_row(buffer.data_ptr(), nbytes)] if nbytes else [], (buffer,))

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
        """The next message's, large enough."""
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
        """Where something new is mapped, something else may have been freed: its mapping holds memory in vain."""
        own = {slot.allocation.number for slot in self._slots if slot is not None}
        own |= {allocation.number for allocation, _handle in self._new}
        for number, allocation in list(self._known.items()):
            if number not in own and self._memory.find(allocation.base) != allocation:
                del self._known[number]
                self._gone.append(number)

    def _free(self) -> None:
        """Frees what the receiver had mapped, and lets go of what it may have read, once it can do so no more."""
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
        return _nothing()


class _Mapping(NamedTuple):
    address: int
    nbytes: int


class _Announced(NamedTuple):
    new: list[tuple[int, int, bytes]]
    """Number, bytes, handle."""

    gone: list[int]
    regions: list[tuple[int, ...]]


class _StartedMessage(NamedTuple):
    mark: CopyMark | None
    """None if nothing is copied: the bytes are read where the sender has them."""

    staged: torch.Tensor
    is_lent: bool
    """Whether ``staged`` is the sender's own memory."""


class MappedReceiver(RegionRecvWire):
    """The receiving end.

    Args:
        connection: to the sender.
        memory: this side's.
        first: number, address and bytes of the slot that was mapped when the two met.
        life: write end of a pipe: closed once nothing is mapped any more.
        stages: whether packed bytes are copied before they are unpacked, as from another GPU; or read where they lie.
    """

    is_still_after_abort = True

    def __init__(
        self, connection: UnixConnection, memory: MappedMemory, first: tuple[int, int, int], life: int, *, stages: bool
    ) -> None:
        self._connection = connection
        self._memory = memory
        number, address, nbytes = first
        self._mapped: dict[int, _Mapping] = {number: _Mapping(address, nbytes)}
        self._life = life
        self._stages = stages
        self._stream = bytearray()
        self._announced: deque[_Announced] = deque()
        self._wanted: deque[Sequence[MemoryRegion | int]] = deque()
        self._started: deque[_StartedMessage] = deque()
        self._taken: deque[_StartedMessage] = deque()
        self._using = threading.Lock()
        self._closed = False

    def accepts(self, region: MemoryRegion) -> bool:
        return True

    def post_recv(self, nbytes: int) -> Transfer:
        return self.post_recv_regions([nbytes] if nbytes else [])

    def post_recv_regions(self, targets: Sequence[MemoryRegion | int]) -> Transfer:
        self._wanted.append(targets)
        return _ReceivedMessage(self)

    def take(self, deadline: float) -> torch.Tensor:
        """What is staged of the oldest message that has not been taken; copies of those after it may be under way."""
        while not self._started:
            if not self._announced:
                self._feed(self._connection.receive(deadline))
            self._start()
        started = self._started[0]
        while started.mark is not None and not started.mark.is_done():
            if time.monotonic() > deadline:
                raise TransferError(LATE)
            self._feed(self._connection.receive_waiting())
            self._start()
            time.sleep(POLL_S)
        with self._using:
            if self._closed:
                raise TransferError(LEFT)
            self._taken.append(self._started.popleft())
        if not started.is_lent:
            self._acknowledge()
        return started.staged

    def release(self) -> None:
        """The oldest message that was taken has been read, once the current stream has come so far."""
        taken = self._taken.popleft()
        if taken.is_lent:
            self._memory.synchronize()
            self._acknowledge()
        elif taken.staged.numel():
            self._memory.unstage(taken.staged)

    def abort(self) -> None:
        self._connection.close()
        with self._using:
            if self._closed:
                return
            self._closed = True
            self._memory.synchronize()
            for mapping in self._mapped.values():
                self._memory.unmap(*mapping)
            self._mapped.clear()
            self._started.clear()
            self._memory.close()
        os.close(self._life)

    def _acknowledge(self) -> None:
        self._connection.send(ACKNOWLEDGEMENT, time.monotonic() + SEND_S)

    def _feed(self, data: bytes) -> None:
        """Takes in bytes, which may end anywhere in an announcement."""
        if not data:
            return
        self._stream += data
        while (found := _parse(self._stream)) is not None:
            announced, size = found
            del self._stream[:size]
            self._announced.append(announced)

    def _start(self) -> None:
        """Enqueues the copies of messages that have been announced and are wanted."""
        with self._using:
            if self._closed:
                raise TransferError(LEFT)
            while self._announced and self._wanted:
                announced = self._announced.popleft()
                self._map(announced)
                self._started.append(self._copy(announced.regions, self._wanted.popleft()))

    def _map(self, announced: _Announced) -> None:
        gone = [self._mapped.pop(number) for number in announced.gone if number in self._mapped]
        if gone:
            self._memory.synchronize()
            for mapping in gone:
                self._memory.unmap(*mapping)
        for number, nbytes, handle in announced.new:
            self._mapped[number] = _Mapping(self._memory.map(handle, nbytes), nbytes)

    def _copy(self, places: Sequence[tuple[int, ...]], targets: Sequence[MemoryRegion | int]) -> _StartedMessage:
        sources = [self._source(*place) for place in places]
        sizes = [target if isinstance(target, int) else target.nbytes for target in targets]
        if [source.nbytes for source in sources] != sizes:
            raise TransferError(
                f"failed: regions of {[source.nbytes for source in sources]} bytes come instead of {sizes}."
            )
        staged_sizes = [target for target in targets if isinstance(target, int)]
        is_lent = not self._stages and len(staged_sizes) == 1 and sources[_only(targets)].is_contiguous
        if is_lent:
            staged = self._memory.view(sources[_only(targets)].address, staged_sizes[0])
        else:
            staged = self._memory.stage(staged_bytes(staged_sizes)) if staged_sizes else _nothing()
        begin, copied = staged.data_ptr() if staged_sizes else 0, False
        for source, target in zip(sources, targets, strict=True):
            if isinstance(target, int):
                if is_lent:
                    continue
                place = _row(begin, target)
                begin += -(-target // ALIGNMENT) * ALIGNMENT
            else:
                place = target
            for to, of in copies(place, source):
                self._memory.copy(to, of)
                copied = True
        return _StartedMessage(self._memory.mark() if copied else None, staged, is_lent)

    def _source(self, number: int, begin: int, rows: int, width: int, pitch: int) -> MemoryRegion:
        mapping = self._mapped.get(number)
        end = begin + (rows - 1) * pitch + width
        if mapping is None or end > mapping.nbytes:
            raise TransferError("failed: the sender names memory that is not mapped.")
        return MemoryRegion(address=mapping.address + begin, rows=rows, width=width, pitch=pitch)


class _ReceivedMessage(Transfer):
    def __init__(self, wire: MappedReceiver) -> None:
        self._wire = wire

    def poll(self, deadline: float) -> torch.Tensor:
        return self._wire.take(deadline)

    def release(self) -> None:
        self._wire.release()


def staged_bytes(sizes: Sequence[int]) -> int:
    """Bytes that staged regions take, each beginning at a multiple of 16."""
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes[:-1]) + sum(sizes[-1:])


def _only(targets: Sequence[MemoryRegion | int]) -> int:
    return next(index for index, target in enumerate(targets) if isinstance(target, int))


def _nothing() -> torch.Tensor:
    import torch

    return torch.empty(0, dtype=torch.uint8)


def _parse(stream: bytearray) -> tuple[_Announced, int] | None:
    """The first announcement of a stream and its bytes; None if it is not complete."""
    if len(stream) < HEAD.size:
        return None
    new_count, gone_count, region_count = HEAD.unpack_from(stream)
    place = HEAD.size
    new = []
    for _ in range(new_count):
        if len(stream) < place + NEW.size:
            return None
        number, nbytes, size = NEW.unpack_from(stream, place)
        place += NEW.size
        new.append((number, nbytes, bytes(stream[place : place + size])))
        place += size
    end = place + gone_count * GONE.size + region_count * REGION.size
    if len(stream) < end:
        return None
    gone = [GONE.unpack_from(stream, place + i * GONE.size)[0] for i in range(gone_count)]
    place += gone_count * GONE.size
    regions = [REGION.unpack_from(stream, place + i * REGION.size) for i in range(region_count)]
    return _Announced(new, gone, regions), end

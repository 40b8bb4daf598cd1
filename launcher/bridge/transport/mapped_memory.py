"""Memory that one process exports and another maps: what a kind of memory offers, and how a message is announced.

The protocol, over a Unix socket, whatever kind of memory it is about. For each message the sender announces where its
regions lie, and the allocations that the receiver has not mapped yet; the receiver copies, and acknowledges with one
byte once it has read everything. An allocation is known by an identity that no other one ever has in the process, so
what a trainer frees and allocates anew is mapped anew, and the mapping of what is gone is ended. Between announcement
and acknowledgement the wire holds the tensors that own the memory, so nothing is read that has been freed.

An announcement: :data:`HEAD`, then for each new allocation :data:`NEW` and its handle, for each that is gone its number
(:data:`GONE`), for each region :data:`REGION`.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, NamedTuple

from launcher.bridge.transport.base import MemoryRegion

if TYPE_CHECKING:
    import torch

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

LEFT = "failed: this end has left."


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
        yield row(target.address, target.nbytes), row(source.address, source.nbytes)
        return
    if source.is_contiguous or target.is_contiguous or source.width == target.width:
        shape = source if target.is_contiguous else target
        yield _like(target, shape), _like(source, shape)
        return
    # Rows of both are made of stretches of one length; this is rare, and need not be fast.
    width = gcd(source.width, target.width)
    for index in range(source.nbytes // width):
        yield _stretch(target, index * width, width), _stretch(source, index * width, width)


def row(address: int, nbytes: int) -> MemoryRegion:
    """Contiguous bytes."""
    return MemoryRegion(address=address, rows=1, width=nbytes, pitch=nbytes)


def _like(region: MemoryRegion, shape: MemoryRegion) -> MemoryRegion:
    """The region in rows of another's width; its own pitch if it has gaps."""
    pitch = shape.width if region.is_contiguous else region.pitch
    return MemoryRegion(address=region.address, rows=shape.rows, width=shape.width, pitch=pitch)


def _stretch(region: MemoryRegion, begin: int, width: int) -> MemoryRegion:
    index, column = divmod(begin, region.width)
    return row(region.address + index * region.pitch + column, width)


class Announcement(NamedTuple):
    """What a sender says of one message."""

    new: list[tuple[int, int, bytes]]
    """Number, bytes, handle."""

    gone: list[int]
    regions: list[tuple[int, ...]]


def parse(stream: bytearray) -> tuple[Announcement, int] | None:
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
    return Announcement(new, gone, regions), end


def nothing() -> torch.Tensor:
    """The bytes of a message that has none to give."""
    import torch

    return torch.empty(0, dtype=torch.uint8)

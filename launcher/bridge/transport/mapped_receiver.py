"""The receiver of messages that are read where they lie: maps the sender's memory and copies out of it into place.

See :mod:`launcher.bridge.transport.mapped_memory` for the protocol.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from launcher.bridge.transport.base import MemoryRegion, RegionRecvWire, Transfer
from launcher.bridge.transport.mapped_memory import (
    ACKNOWLEDGEMENT,
    LEFT,
    SEND_S,
    Announcement,
    CopyMark,
    MappedMemory,
    copies,
    nothing,
    parse,
    row,
)
from launcher.common.errors import TransferError

if TYPE_CHECKING:
    import torch

    from launcher.bridge.transport.unix_connection import UnixConnection

POLL_S = 0.00002
ALIGNMENT = 16
LATE = "did not complete within its deadline."


class _Mapping(NamedTuple):
    address: int
    nbytes: int


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
        self._announced: deque[Announcement] = deque()
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
        while (found := parse(self._stream)) is not None:
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

    def _map(self, announced: Announcement) -> None:
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
            staged = self._memory.stage(staged_bytes(staged_sizes)) if staged_sizes else nothing()
        begin, copied = staged.data_ptr() if staged_sizes else 0, False
        for source, target in zip(sources, targets, strict=True):
            if isinstance(target, int):
                if is_lent:
                    continue
                place = row(begin, target)
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

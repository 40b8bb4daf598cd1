"""The contract of a transport: how one message after the other gets from one trainer rank to one engine worker.

A wire joins one such pair. Its two ends lend the memory that messages lie in, so that a transport which can write into
the other side's memory needs no copy of its own: the sender packs straight into :meth:`SendWire.buffer`, the receiver
unpacks straight from what :meth:`Transfer.poll` gives. A transport that copies anyway reads and writes its callers' own
memory where they allow it: :class:`DirectSendWire`, :class:`DirectRecvWire`. Messages arrive whole and in order; both
sides know their sizes from the plan, so nothing but bytes travels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Transfer(ABC):
    """One message that has been posted."""

    @abstractmethod
    def poll(self, deadline: float) -> torch.Tensor:
        """Waits until the message has gone, or has come, and gives its bytes.

        On a GPU the bytes are there for whatever is enqueued on the current stream from now on.

        Args:
            deadline: ``time.monotonic()``.

        Raises:
            TransferError: it failed, the other end is gone, the wire was aborted, or it is not complete in time.
        """

    def release(self) -> None:  # noqa: B027
        """The bytes of a message that came are no longer read, once what is enqueued on the current stream is done."""


class SendWire(ABC):
    """The trainer rank's end. Transfers are polled in the order in which they were posted."""

    @abstractmethod
    def buffer(self, nbytes: int, deadline: float) -> torch.Tensor:
        """Memory for the next message: uint8, shape (nbytes,), aligned to 16 bytes. To be filled, and then posted.

        Raises:
            TransferError: none becomes free in time, or the wire is of no more use.
        """

    @abstractmethod
    def post_send(self, buffer: torch.Tensor) -> Transfer:
        """Starts to send what :meth:`buffer` gave last; it must stay as it is until the transfer is complete.

        Raises:
            TransferError: the wire is of no more use.
        """

    @abstractmethod
    def abort(self) -> None:
        """Leaves the wire and frees what it holds. From any thread; polls end with an error. Safe to call twice."""


class RecvWire(ABC):
    """The engine worker's end. Transfers are polled, and released, in the order in which they were posted."""

    @abstractmethod
    def post_recv(self, nbytes: int) -> Transfer:
        """Makes ready for the next message, of ``nbytes``.

        Raises:
            TransferError: the wire is of no more use.
        """

    @abstractmethod
    def abort(self) -> None:
        """Leaves the wire and frees what it holds. From any thread; polls end with an error. Safe to call twice."""


class DirectSendWire(SendWire):
    """One that can send from where the bytes are; messages go over it cut, see
    :mod:`launcher.bridge.transport.regions`."""

    @abstractmethod
    def post_send_from(self, content: torch.Tensor) -> Transfer:
        """Starts to send the caller's uint8, contiguous host memory, which must stay until the transfer is complete.

        Raises:
            TransferError: the wire is of no more use.
        """


class DirectRecvWire(RecvWire):
    """The other end of a :class:`DirectSendWire`; it can receive to where the bytes belong."""

    @abstractmethod
    def post_recv_into(self, target: torch.Tensor) -> Transfer:
        """Makes ready for the next message, as long as the caller's uint8, contiguous host memory.

        If the transfer does not complete, also after :meth:`abort`, the target may be written for as long as the
        other end sends: it must not be used for anything else, ever.

        Raises:
            TransferError: the wire is of no more use.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRegion:
    """Bytes in one process's memory: rows of equal length, at equal distances."""

    address: int
    rows: int
    width: int
    """Bytes of a row."""

    pitch: int
    """Bytes from the beginning of one row to that of the next; ``width`` if there is one row, or no gap."""

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.rows * self.width

    @property
    def is_contiguous(self) -> bool:
        """Whether the rows follow each other without a gap."""
        return self.rows == 1 or self.pitch == self.width


class RegionSendWire(SendWire):
    """One that sends a message out of several regions of the caller's memory, without a copy of its own; see
    :mod:`launcher.bridge.transport.regions`."""

    device: torch.device
    """Whose memory it sends."""

    @abstractmethod
    def reaches(self, region: MemoryRegion) -> bool:
        """Whether the wire can send from a region; if not, its bytes are to be packed into :meth:`buffer`."""

    @abstractmethod
    def post_send_regions(self, regions: Sequence[MemoryRegion], keep: Sequence[torch.Tensor]) -> Transfer:
        """Starts to send one message: the bytes of all regions, in this order.

        Everything that the current stream has been given must be about other memory, or writes what is to be sent.

        Args:
            regions: each is reached by the wire, or lies in what :meth:`buffer` gave last.
            keep: tensors that own this memory. The wire holds them until the receiver has read the message, or can
                read it no more, also if the transfer fails; their content must stay until the transfer is complete.

        Raises:
            TransferError: the wire is of no more use.
        """


class RegionRecvWire(RecvWire):
    """The other end of a :class:`RegionSendWire`; it receives into several regions of the caller's memory."""

    is_still_after_abort: bool
    """Whether nothing is written any more once :meth:`abort` has returned; else what has been posted as a target must
    not be used for anything else, ever."""

    @abstractmethod
    def accepts(self, region: MemoryRegion) -> bool:
        """Whether the wire can receive into a region; if not, its bytes are to be staged."""

    @abstractmethod
    def post_recv_regions(self, targets: Sequence[MemoryRegion | int]) -> Transfer:
        """Makes ready for the next message.

        :meth:`Transfer.poll` gives the bytes of those regions that are staged, each beginning at a multiple of 16.

        Args:
            targets: for each region where it belongs, or its bytes if it is to be staged. What is written there before
                the transfer is complete, or after it has failed, is undefined.

        Raises:
            TransferError: the wire is of no more use.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Whom a wire joins."""

    sender: int
    """Trainer rank."""

    receiver: int
    """Rank of the worker in its replica."""

    def __str__(self) -> str:
        return f"{self.sender}-{self.receiver}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where the ends of a replica's wires meet; both sides have the same."""

    group: str
    """Distinguishes these wires from all others of the run."""

    secret: str
    """Known to the two sides only; proves to each end of a wire who the other is."""

    store: str | None = None
    """``host:port`` of the trainer's store, for transports that meet there."""

    directory: Path | None = None
    """That both sides share, for transports that meet there."""

    address: str | None = None
    """Of this host, as the other side reaches it."""

    timeout_s: float = 300.0
    """Deadline of meeting."""


class Buffers:
    """Buffers of one wire, on one device, that are used again: fresh host memory costs more than the copy into it.

    There are never more of them than messages were under way at a time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._free: list[torch.Tensor] = []
        self.cleared = False

    def take(self, nbytes: int) -> torch.Tensor:
        """uint8, shape (nbytes,): a part of one that is free and large enough, or new."""
        for index, buffer in enumerate(self._free):
            if buffer.numel() >= nbytes:
                return self._free.pop(index)[:nbytes]
        import torch

        # None is large enough: the largest gives way to one that is.
        del self._free[-1:]
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def give(self, buffer: torch.Tensor) -> None:
        """It is not used any more."""
        whole: torch.Tensor = buffer if buffer._base is None else buffer._base
        if not self.cleared:
            self._free = sorted([*self._free, whole], key=lambda free: free.numel())

    def clear(self) -> None:
        """Frees them, for good."""
        self.cleared = True
        self._free = []

"""``nccl``: GPU memory between nodes, a communicator of two for each pair.

All regions of a message are one group of NCCL's: one kernel, out of the caller's memory and into it. What is packed, or
staged, lies in buffers of the wire.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed as dist

from launcher.bridge.groups import NEVER, errors_left_to_us
from launcher.bridge.transport import cudart
from launcher.bridge.transport.base import (
    Buffers,
    Meeting,
    MemoryRegion,
    Pair,
    RecvWire,
    RegionRecvWire,
    RegionSendWire,
    SendWire,
    Transfer,
)
from launcher.bridge.transport.choose import here
from launcher.bridge.transport.mapped_receiver import ALIGNMENT, staged_bytes
from launcher.bridge.transport.rendezvous import at_store, explained
from launcher.common.errors import TransferError

COMPLETED = 3
"""``NVML_GPU_FABRIC_STATE_COMPLETED``."""

SENDER, RECEIVER = 0, 1
POLL_S = 0.00002
LONGEST_POLL_S = 0.005
LATER = 0.05
"""An operation is found to be complete at most this share of its duration late."""

CHANNELS_VARIABLE = "LAUNCHER_BRIDGE_NCCL_CHANNELS"
CHANNELS = 8
"""Most channels of a communicator over a network, which bounds its buffers: a network card needs few."""

NVLINK_CHANNELS = 32
"""Most channels of a communicator over NVLink, whose bandwidth fewer do not reach."""


class NcclTransfer(Transfer):
    """The operations of one message.

    Args:
        work: of torch's; None for a message of no bytes.
        buffer: of the wire's, that was packed or is to be unpacked.
    """

    def __init__(self, work: Any, buffer: torch.Tensor, buffers: Buffers) -> None:
        self._work = work
        self._buffer = buffer
        self._buffers = buffers

    def poll(self, deadline: float) -> torch.Tensor:
        # NCCL's own wait only orders streams and never times out on the host.
        begin = time.monotonic()
        with explained():
            while self._work is not None and not self._work.is_completed():
                if time.monotonic() > deadline:
                    raise TransferError("did not complete within its deadline.")
                time.sleep(min(max(POLL_S, LATER * (time.monotonic() - begin)), LONGEST_POLL_S))
            if self._work is not None:
                self._work.wait()
            if self._buffers.cleared:  # An operation that is aborted counts as complete.
                raise TransferError("failed: this end has left.")
        return self._buffer

    def give_back(self) -> None:
        """Returns the buffer to the wire."""
        if self._buffer.numel():
            self._buffers.give(self._buffer)


class _SentByNccl(NcclTransfer):
    def __init__(self, work: Any, buffer: torch.Tensor, buffers: Buffers, keeps: deque[Any]) -> None:
        super().__init__(work, buffer, buffers)
        self._keeps = keeps

    def poll(self, deadline: float) -> torch.Tensor:
        buffer = super().poll(deadline)
        self._keeps.popleft()
        self.give_back()
        return buffer


class _ReceivedByNccl(NcclTransfer):
    def release(self) -> None:
        self.give_back()


class NcclSender(RegionSendWire):
    """The sending end."""

    def __init__(self, group: Any, device: torch.device) -> None:
        self.device = device
        self._group = group
        self._tags = itertools.count()
        self._buffers = Buffers(device)
        self._lent = torch.empty(0, dtype=torch.uint8, device=device)
        self._keeps: deque[Any] = deque()
        """What operations that are not complete read."""

    def buffer(self, nbytes: int, deadline: float) -> torch.Tensor:
        self._lent = self._buffers.take(nbytes)
        return self._lent

    def post_send(self, buffer: torch.Tensor) -> Transfer:
        return self._post([buffer] if buffer.numel() else [], ())

    def reaches(self, region: MemoryRegion) -> bool:
        return region.is_contiguous

    def post_send_regions(self, regions: Sequence[MemoryRegion], keep: Sequence[torch.Tensor]) -> Transfer:
        return self._post([cudart.tensor_at(r.address, r.nbytes, self.device) for r in regions], keep)

    def abort(self) -> None:
        self._buffers.clear()
        self._group.abort()
        self._keeps.clear()

    def _post(self, contents: Sequence[torch.Tensor], keep: Sequence[torch.Tensor]) -> Transfer:
        lent, self._lent = self._lent, self._lent[:0]
        self._keeps.append((contents, keep))
        with explained():
            work = None
            if contents:
                self._group._start_coalescing()
                for content in contents:
                    self._group.send([content], RECEIVER, next(self._tags))
                work = self._group._end_coalescing()
        return _SentByNccl(work, lent, self._buffers, self._keeps)


class NcclReceiver(RegionRecvWire):
    """The receiving end."""

    is_still_after_abort = False

    def __init__(self, group: Any, device: torch.device) -> None:
        self._device = device
        self._group = group
        self._tags = itertools.count()
        self._buffers = Buffers(device)

    def accepts(self, region: MemoryRegion) -> bool:
        return region.is_contiguous

    def post_recv(self, nbytes: int) -> Transfer:
        return self.post_recv_regions([nbytes] if nbytes else [])

    def post_recv_regions(self, targets: Sequence[MemoryRegion | int]) -> Transfer:
        nbytes = staged_bytes([target for target in targets if isinstance(target, int)])
        staged, begin = self._buffers.take(nbytes) if nbytes else torch.empty(0, dtype=torch.uint8), 0
        with explained():
            work = None
            if targets:
                self._group._start_coalescing()
                for target in targets:
                    if isinstance(target, int):
                        place = staged[begin : begin + target]
                        begin += -(-target // ALIGNMENT) * ALIGNMENT
                    else:
                        place = cudart.tensor_at(target.address, target.nbytes, self._device)
                    self._group.recv([place], SENDER, next(self._tags))
                work = self._group._end_coalescing()
        return _ReceivedByNccl(work, staged, self._buffers)

    def abort(self) -> None:
        self._buffers.clear()
        self._group.abort()


def connect_sender(meeting: Meeting, pair: Pair, device: torch.device) -> SendWire:
    """Waits for the receiver, in a call that may have no end: never to be made by the main thread.

    Raises:
        RendezvousTimeout: it does not come.
    """
    group = _group(meeting, pair, SENDER, device)
    wire = NcclSender(group, device)
    _first(wire.post_send(torch.zeros(1, dtype=torch.uint8, device=device)), meeting)
    return wire


def connect_receiver(meeting: Meeting, pair: Pair, device: torch.device) -> RecvWire:
    """Waits for the sender, in a call that may have no end: never to be made by the main thread.

    Raises:
        RendezvousTimeout: it does not come.
    """
    group = _group(meeting, pair, RECEIVER, device)
    wire = NcclReceiver(group, device)
    transfer = wire.post_recv(1)
    _first(transfer, meeting)
    transfer.release()
    return wire


def _first(transfer: Transfer, meeting: Meeting) -> None:
    # Only now do the two connect, as torch makes a communicator with its first message.
    transfer.poll(time.monotonic() + meeting.timeout_s)


def _group(meeting: Meeting, pair: Pair, rank: int, device: torch.device) -> Any:
    torch.cuda.set_device(device)
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = NEVER
    with at_store(meeting, pair) as store, errors_left_to_us():
        options.config.max_ctas = _channels(store, rank, device)
        return dist.ProcessGroupNCCL(store, rank, 2, options)


def _channels(store: dist.Store, rank: int, device: torch.device) -> int:
    """Most channels for what joins the two GPUs: NVLink, on one host or in one fabric of several, or a network."""
    ours = f"{here(device).host} {fabric_of(device)}"
    store.set(f"place/{rank}", ours)
    theirs = store.get(f"place/{1 - rank}").decode()
    if CHANNELS_VARIABLE in os.environ:
        return int(os.environ[CHANNELS_VARIABLE])
    (host, fabric), (other_host, other_fabric) = ours.split(" "), theirs.split(" ")
    return NVLINK_CHANNELS if host == other_host or (fabric and fabric == other_fabric) else CHANNELS


class _FabricInfo(ctypes.Structure):
    """``nvmlGpuFabricInfo_t`` of NVIDIA's management library."""

    _fields_ = (
        ("cluster", ctypes.c_ubyte * 16),
        ("status", ctypes.c_int),
        ("clique", ctypes.c_uint),
        ("state", ctypes.c_ubyte),
    )


def fabric_of(device: torch.device) -> str:
    """An id, equal for GPUs that NVLink connects across hosts; empty where there is no such fabric."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        if library.nvmlInit_v2() != 0:
            return ""
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
        handle, info = ctypes.c_void_p(), _FabricInfo()
        found = (
            library.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)) == 0
            and library.nvmlDeviceGetGpuFabricInfo(handle, ctypes.byref(info)) == 0
            and info.state == COMPLETED
            and any(info.cluster)
        )
    except (OSError, AttributeError):  # There is no such library, or an older one.
        return ""
    return f"{bytes(info.cluster).hex()}-{info.clique}" if found else ""

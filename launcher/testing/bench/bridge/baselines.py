"""What others do: whole tensors from one rank to all, or mapped memory where trainer and engine share a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import distributed as dist
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from launcher.bridge.transport import cudart
from launcher.testing.bench.bridge.context import SENDER, Baseline, Context, Method


class PerParameter(Baseline):
    """One broadcast after the other."""

    name = "broadcast per parameter"

    def once(self) -> None:
        for tensor in self.tensors:
            self.context.group.broadcast(tensor, SENDER).wait()


class Coalesced(Baseline):
    """All broadcasts posted, then waited for."""

    name = "broadcasts, coalesced"

    def once(self) -> None:
        group, device = self.context.group, self.context.device
        if device.type == "cuda":
            group._start_coalescing()
            for tensor in self.tensors:
                group.broadcast(tensor, SENDER)
            group._end_coalescing().wait()
            return
        for work in [group.broadcast(tensor, SENDER) for tensor in self.tensors]:
            work.wait()


class SendReceive(Baseline):
    """All sends and receives posted, then waited for; to each worker by itself."""

    name = "send and receive, batched"

    def once(self) -> None:
        group, device = self.context.group, self.context.device
        gpu = device.type == "cuda"
        if gpu:
            group._start_coalescing()
        if self.context.is_sender:
            peers = range(1, self.context.world_size)
            works = [group.send([tensor], peer, 0) for tensor in self.tensors for peer in peers]
        else:
            works = [group.recv([tensor], SENDER, 0) for tensor in self.tensors]
        if gpu:
            works = [group._end_coalescing()]
        for work in works:
            work.wait()


class Packed(Baseline):
    """Buckets, two of them in turn, as vLLM's packed broadcast has it: one is packed while the other is in flight."""

    def __init__(self, context: Context, bucket_mb: int) -> None:
        super().__init__(context)
        self.name = self.title(bucket_mb)
        self._bytes = bucket_mb << 20

    @staticmethod
    def title(bucket_mb: int) -> str:
        """Its name."""
        return f"packed broadcast, {bucket_mb} MiB"

    def once(self) -> None:
        group = self.context.group
        in_flight: list[tuple[object, torch.Tensor, list[torch.Tensor]]] = []
        for bucket in self._buckets():
            size = sum(tensor.numel() * tensor.element_size() for tensor in bucket)
            if self.context.is_sender:
                buffer = torch.cat([tensor.view(-1).view(torch.uint8) for tensor in bucket])
            else:
                buffer = torch.empty(size, dtype=torch.uint8, device=self.context.device)
            in_flight.append((group.broadcast(buffer, SENDER), buffer, bucket))
            if len(in_flight) == 2:
                self._finish(*in_flight.pop(0))
        for entry in in_flight:
            self._finish(*entry)

    def _finish(self, work: object, buffer: torch.Tensor, bucket: list[torch.Tensor]) -> None:
        work.wait()  # type: ignore[attr-defined]
        if not self.context.is_sender:
            sizes = [tensor.numel() * tensor.element_size() for tensor in bucket]
            for tensor, part in zip(bucket, torch.split(buffer, sizes), strict=True):
                tensor.view(-1).view(torch.uint8).copy_(part)

    def _buckets(self) -> Iterator[list[torch.Tensor]]:
        bucket: list[torch.Tensor] = []
        size = 0
        for tensor in self.tensors:
            bucket.append(tensor)
            size += tensor.numel() * tensor.element_size()
            if size >= self._bytes:
                yield bucket
                bucket, size = [], 0
        if bucket:
            yield bucket


class Seed(Baseline):
    """The earlier bridge's scheme, repaired: for each parameter its index, then a gather over trainer and workers."""

    name = "index and all-gather per parameter"

    def once(self) -> None:
        context = self.context
        index = torch.zeros(1, dtype=torch.int64, device=context.device)
        for number, tensor in enumerate(self.tensors):
            index.fill_(number)
            context.group.broadcast(index, SENDER).wait()
            mine = tensor if context.is_sender else torch.zeros_like(tensor)
            parts = [torch.empty_like(tensor) for _ in range(context.world_size)]
            context.group.allgather([parts], [mine]).wait()
            if int(index) >= 0 and not context.is_sender:
                tensor.copy_(parts[SENDER])


class CopyWithinProcess(Baseline):
    """Not a method but the ceiling: the same bytes from memory to memory, within one process."""

    name = "ceiling: copy within one process"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._copies = [] if context.is_sender else [torch.ones_like(tensor) for tensor in self.tensors]

    def once(self) -> None:
        for copy, tensor in zip(self._copies, self.tensors, strict=False):
            copy.copy_(tensor)

    def check(self) -> None:
        """Nothing to check: its bytes are no update."""

    def close(self) -> None:
        self._copies = []


class RawPeer(Baseline):
    """Not a method but the ceiling between two GPUs of one host: the same number of bytes in large blocks."""

    name = "ceiling: raw peer copy"
    block = 2 << 30

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._bytes = sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)
        pointer = cudart.allocate(context.device, self.block)
        handle = context.ranks.broadcast_json(cudart.handle(pointer).hex() if context.is_sender else None)
        self._own, self._theirs = pointer, 0
        if not context.is_sender:
            self._theirs = cudart.map_handle(context.device, bytes.fromhex(handle))

    def once(self) -> None:
        if self._theirs:
            for begin in range(0, self._bytes, self.block):
                nbytes = min(self.block, self._bytes - begin)
                cudart.copy(self._own, self._theirs, nbytes, torch.cuda.current_stream())

    def check(self) -> None:
        """Nothing to check: its bytes are no update."""

    def close(self) -> None:
        if self._theirs:
            cudart.unmap(self.context.device, self._theirs)
        self.context.barrier()
        cudart.free(self.context.device, self._own)


def baselines(context: Context) -> dict[str, Callable[[Context], Method]]:
    """By name, how to make each that this machine allows: NCCL refuses ranks that share a GPU."""
    found: dict[str, Callable[[Context], Method]]
    if context.group is None:
        found = {Handles.name: Handles, CopyWithinProcess.name: CopyWithinProcess}
        return found | {PackedHandle.title(size): partial(PackedHandle, bucket_mb=size) for size in (256, 1024)}
    sizes = (256, 1024) if context.device.type == "cuda" else (64,)
    found = {kind.name: kind for kind in (PerParameter, Coalesced, SendReceive, Seed, CopyWithinProcess)}
    found |= {Packed.title(size): partial(Packed, bucket_mb=size) for size in sizes}
    return found | {RawPeer.name: RawPeer} if context.device.type == "cuda" and context.world_size == 2 else found


class Handles(Baseline):
    """A handle of each tensor, pickled; one copy of each, straight to where it belongs."""

    name = "IPC handle per parameter"

    def once(self) -> None:
        handles = [_handle(tensor) for tensor in self.tensors] if self.context.is_sender else []
        message = [handles]
        dist.broadcast_object_list(message, SENDER)
        if not self.context.is_sender:
            for tensor, handle in zip(self.tensors, message[0], strict=True):
                tensor.copy_(_mapped(handle))
        self.context.barrier()


class PackedHandle(Baseline):
    """One buffer that is filled and emptied in turn, as vLLM's packed IPC transfer has it, but mapped only once."""

    def __init__(self, context: Context, bucket_mb: int) -> None:
        super().__init__(context)
        self.name = self.title(bucket_mb)
        self._buckets: list[list[torch.Tensor]] = [[]]
        filled = 0
        for tensor in self.tensors:
            if filled and filled + tensor.nbytes > bucket_mb << 20:
                self._buckets.append([])
                filled = 0
            self._buckets[-1].append(tensor)
            filled += tensor.nbytes
        size = max(sum(tensor.nbytes for tensor in bucket) for bucket in self._buckets)
        pointer = cudart.allocate(context.device, size) if context.is_sender else 0
        handle = context.ranks.broadcast_json(cudart.handle(pointer).hex() if context.is_sender else None)
        if not context.is_sender:
            pointer = cudart.map_handle(context.device, bytes.fromhex(handle))
        self._pointer = pointer
        self._buffer = cudart.tensor_at(pointer, size, context.device)

    @staticmethod
    def title(bucket_mb: int) -> str:
        """Its name."""
        return f"packed IPC, {bucket_mb} MiB"

    def close(self) -> None:
        if not self.context.is_sender:
            cudart.unmap(self.context.device, self._pointer)
        self.context.barrier()
        if self.context.is_sender:
            cudart.free(self.context.device, self._pointer)

    def once(self) -> None:
        for bucket in self._buckets:
            if self.context.is_sender:
                self._copy(bucket)
            self.context.barrier()
            if not self.context.is_sender:
                self._copy(bucket)
            self.context.barrier()

    def _copy(self, bucket: list[torch.Tensor]) -> None:
        begin = 0
        for tensor in bucket:
            flat, part = tensor.view(-1).view(torch.uint8), self._buffer[begin : begin + tensor.nbytes]
            if self.context.is_sender:
                part.copy_(flat)
            else:
                flat.copy_(part)
            begin += tensor.nbytes


def _handle(tensor: torch.Tensor) -> tuple[Any, ...]:
    _rebuild, arguments = reduce_tensor(tensor)  # type: ignore[no-untyped-call]
    return tuple(arguments)


def _mapped(handle: tuple[Any, ...]) -> torch.Tensor:
    tensor: torch.Tensor = rebuild_cuda_tensor(*handle)  # type: ignore[no-untyped-call]
    return tensor

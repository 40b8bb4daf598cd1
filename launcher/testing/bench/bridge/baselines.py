"""What others do: whole tensors from one rank to all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from launcher.bridge.transport import cudart
from launcher.testing.bench.bridge.stage import SENDER, Baseline, Method, Stage


class PerParameter(Baseline):
    """One broadcast after the other."""

    name = "broadcast per parameter"

    def once(self) -> None:
        for tensor in self.tensors:
            self.stage.group.broadcast(tensor, SENDER).wait()


class Coalesced(Baseline):
    """All broadcasts posted, then waited for."""

    name = "broadcasts, coalesced"

    def once(self) -> None:
        group, device = self.stage.group, self.stage.device
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
        group, device = self.stage.group, self.stage.device
        gpu = device.type == "cuda"
        if gpu:
            group._start_coalescing()
        if self.stage.is_sender:
            peers = range(1, self.stage.world_size)
            works = [group.send([tensor], peer, 0) for tensor in self.tensors for peer in peers]
        else:
            works = [group.recv([tensor], SENDER, 0) for tensor in self.tensors]
        if gpu:
            works = [group._end_coalescing()]
        for work in works:
            work.wait()


class Packed(Baseline):
    """Buckets, two of them in turn, as vLLM's packed broadcast has it: one is packed while the other is on its way."""

    def __init__(self, stage: Stage, bucket_mb: int) -> None:
        super().__init__(stage)
        self.name = self.title(bucket_mb)
        self._bytes = bucket_mb << 20

    @staticmethod
    def title(bucket_mb: int) -> str:
        """Its name."""
        return f"packed broadcast, {bucket_mb} MiB"

    def once(self) -> None:
        group = self.stage.group
        on_the_way: list[tuple[object, torch.Tensor, list[torch.Tensor]]] = []
        for bucket in self._buckets():
            size = sum(tensor.numel() * tensor.element_size() for tensor in bucket)
            if self.stage.is_sender:
                buffer = torch.cat([tensor.view(-1).view(torch.uint8) for tensor in bucket])
            else:
                buffer = torch.empty(size, dtype=torch.uint8, device=self.stage.device)
            on_the_way.append((group.broadcast(buffer, SENDER), buffer, bucket))
            if len(on_the_way) == 2:
                self._finish(*on_the_way.pop(0))
        for entry in on_the_way:
            self._finish(*entry)

    def _finish(self, work: object, buffer: torch.Tensor, bucket: list[torch.Tensor]) -> None:
        work.wait()  # type: ignore[attr-defined]
        if not self.stage.is_sender:
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
        stage = self.stage
        index = torch.zeros(1, dtype=torch.int64, device=stage.device)
        for number, tensor in enumerate(self.tensors):
            index.fill_(number)
            stage.group.broadcast(index, SENDER).wait()
            mine = tensor if stage.is_sender else torch.zeros_like(tensor)
            parts = [torch.empty_like(tensor) for _ in range(stage.world_size)]
            stage.group.allgather([parts], [mine]).wait()
            if int(index) >= 0 and not stage.is_sender:
                tensor.copy_(parts[SENDER])


class CopyWithinProcess(Baseline):
    """Not a way but the ceiling: the same bytes from memory to memory, within one process."""

    name = "ceiling: copy within one process"

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._copies = [] if stage.is_sender else [torch.ones_like(tensor) for tensor in self.tensors]

    def once(self) -> None:
        for copy, tensor in zip(self._copies, self.tensors, strict=False):
            copy.copy_(tensor)

    def check(self) -> None:
        """Its bytes are nobody's."""

    def close(self) -> None:
        self._copies = []


class RawPeer(Baseline):
    """Not a way but the ceiling between two GPUs of one host: the same number of bytes in large blocks."""

    name = "ceiling: raw peer copy"
    block = 2 << 30

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._bytes = sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)
        pointer = cudart.allocate(stage.device, self.block)
        handle = stage.ranks.broadcast_json(cudart.handle(pointer).hex() if stage.is_sender else None)
        self._own, self._theirs = pointer, 0
        if not stage.is_sender:
            self._theirs = cudart.map_handle(stage.device, bytes.fromhex(handle))

    def once(self) -> None:
        if self._theirs:
            for begin in range(0, self._bytes, self.block):
                nbytes = min(self.block, self._bytes - begin)
                cudart.copy(self._own, self._theirs, nbytes, torch.cuda.current_stream())

    def check(self) -> None:
        """Its bytes are nobody's."""

    def close(self) -> None:
        if self._theirs:
            cudart.unmap(self.stage.device, self._theirs)
        self.stage.barrier()
        cudart.free(self.stage.device, self._own)


def baselines(stage: Stage) -> dict[str, Callable[[Stage], Method]]:
    """By name, how to make each that this machine allows: NCCL refuses ranks that share a GPU."""
    found: dict[str, Callable[[Stage], Method]]
    if stage.group is None:
        from launcher.testing.bench.bridge.shared_gpu import Handles, PackedHandle

        found = {Handles.name: Handles, CopyWithinProcess.name: CopyWithinProcess}
        return found | {PackedHandle.title(size): partial(PackedHandle, bucket_mb=size) for size in (256, 1024)}
    sizes = (256, 1024) if stage.device.type == "cuda" else (64,)
    found = {kind.name: kind for kind in (PerParameter, Coalesced, SendReceive, Seed, CopyWithinProcess)}
    found |= {Packed.title(size): partial(Packed, bucket_mb=size) for size in sizes}
    return found | {RawPeer.name: RawPeer} if stage.device.type == "cuda" and stage.world_size == 2 else found

"""What others do when trainer and engine share a GPU: the engine maps the trainer's memory and copies from there."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed as dist
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from launcher.bridge.transport import cudart
from launcher.testing.bench.bridge.stage import SENDER, Baseline, Stage


class Handles(Baseline):
    """A handle of each tensor, pickled; one copy of each, straight to where it belongs."""

    name = "IPC handle per parameter"

    def once(self) -> None:
        handles = [_handle(tensor) for tensor in self.tensors] if self.stage.is_sender else []
        message = [handles]
        dist.broadcast_object_list(message, SENDER)
        if not self.stage.is_sender:
            for tensor, handle in zip(self.tensors, message[0], strict=True):
                tensor.copy_(_mapped(handle))
        self.stage.barrier()


class PackedHandle(Baseline):
    """One buffer that is filled and emptied in turn, as vLLM's packed IPC transfer has it, but mapped only once."""

    def __init__(self, stage: Stage, bucket_mb: int) -> None:
        super().__init__(stage)
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
        pointer = cudart.allocate(stage.device, size) if stage.is_sender else 0
        handle = stage.ranks.broadcast_json(cudart.handle(pointer).hex() if stage.is_sender else None)
        if not stage.is_sender:
            pointer = cudart.map_handle(stage.device, bytes.fromhex(handle))
        self._pointer = pointer
        self._buffer = cudart.tensor_at(pointer, size, stage.device)

    @staticmethod
    def title(bucket_mb: int) -> str:
        """Its name."""
        return f"packed IPC, {bucket_mb} MiB"

    def close(self) -> None:
        if not self.stage.is_sender:
            cudart.unmap(self.stage.device, self._pointer)
        self.stage.barrier()
        if self.stage.is_sender:
            cudart.free(self.stage.device, self._pointer)

    def once(self) -> None:
        for bucket in self._buckets:
            if self.stage.is_sender:
                self._copy(bucket)
            self.stage.barrier()
            if not self.stage.is_sender:
                self._copy(bucket)
            self.stage.barrier()

    def _copy(self, bucket: list[torch.Tensor]) -> None:
        begin = 0
        for tensor in bucket:
            flat, part = tensor.view(-1).view(torch.uint8), self._buffer[begin : begin + tensor.nbytes]
            if self.stage.is_sender:
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

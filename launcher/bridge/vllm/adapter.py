"""An adapter inside a vLLM worker: its matrices are received in host memory, and vLLM's manager has them from there."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from launcher.bridge.engine.worker import EngineWorker
from launcher.bridge.plan import Box
from launcher.bridge.protocol import Manifest, StageAdapter
from launcher.bridge.settings import Mode
from launcher.bridge.vllm.compat import AdapterManager
from launcher.bridge.weightmap import BoundParameter, CopyOp, LoadMethod, WeightMap
from launcher.common.errors import BridgeError


class AdapterWorker(EngineWorker):
    """One adapter in one worker. Every worker gets all of its matrices: vLLM cuts out what a worker needs itself.

    Args:
        worker: vLLM's.
    """

    def __init__(self, worker: Any) -> None:
        self.rank, self.device = worker.rank, worker.device
        if not AdapterManager.is_in(worker):
            raise BridgeError("this engine takes no adapters. HINT: start it with `--enable-lora`.")
        self._manager = AdapterManager(worker)

    def learn(self, manifest: Manifest) -> WeightMap:
        """All matrices, whole, in the type in which vLLM keeps them."""
        dtype = self._manager.dtype
        return WeightMap(
            manifest=manifest, parameters=tuple(_whole(entry.name, entry.shape, dtype) for entry in manifest)
        )

    def make_writer(self, weight_map: WeightMap, mode: Mode) -> AdapterWriter:
        """Into vLLM's adapter manager."""
        assert self._spec is not None and self._spec.adapter is not None
        return AdapterWriter(weight_map, self._spec.adapter, self._manager, self.device)

    def stage(self, request: StageAdapter) -> None:
        """Builds vLLM's object for the adapter."""
        assert isinstance(self._writer, AdapterWriter) and request.lora_id is not None
        self._writer.stage(request.lora_id)


class AdapterWriter:
    """Owns the matrices that receive a version. Memory: three times the adapter, in host memory.

    Args:
        weight_map: of this adapter.
        config: PEFT's description.
        manager: of this worker.
        device: of the worker.
    """

    def __init__(
        self, weight_map: WeightMap, config: Mapping[str, Any], manager: AdapterManager, device: torch.device
    ) -> None:
        self._config = dict(config)
        self._manager = manager
        self._staged: Any = None
        pin = device.type == "cuda"
        self.received = {
            bound.name: torch.empty(bound.shape, dtype=getattr(torch, bound.dtype), pin_memory=pin)
            for bound in weight_map.parameters
        }

    @property
    def extra_bytes(self) -> int:
        """Host memory that it takes between updates, besides vLLM's own."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.received.values())

    def stage(self, lora_id: int) -> None:
        """Makes what vLLM wants of what was received, and checks it; nothing is served yet.

        Raises:
            BridgeError: this engine cannot use all of the adapter.
            ValueError: vLLM refuses its kind, or its rank.
        """
        # Copies: vLLM scales and fuses them in place.
        tensors = {name: tensor.clone() for name, tensor in self.received.items()}
        lora = self._manager.build(lora_id, self._config, tensors)
        unknown = sorted(set(lora.loras) - self._manager.known_modules())
        if unknown:
            raise BridgeError(f"the adapter is for `{unknown[0]}`, to which this engine can add none.")
        halves = [name for name, layer in lora.loras.items() if layer.lora_a is None or layer.lora_b is None]
        if halves:
            raise BridgeError(f"of the adapter's matrices for `{halves[0]}` one is missing.")
        others = self._manager.pinned_others(lora_id)
        if others >= self._manager.slots:
            raise BridgeError(f"there is no room beside {others} adapters. HINT: start the engine with `--max-loras`.")
        self._staged = lora

    def commit(self) -> None:
        """Puts it in place of the version before. The engine must not run a forward pass meanwhile."""
        lora, self._staged = self._staged, None
        if lora is None:
            raise BridgeError("the adapter that was received has not been staged")
        self._manager.replace(lora)


def _whole(name: str, shape: tuple[int, ...], dtype: str) -> BoundParameter:
    strides = tuple(prod(shape[dim + 1 :]) for dim in range(len(shape)))
    copy = CopyOp(source_name=name, source_box=Box.full(shape), parameter=name, offset=0, shape=shape, strides=strides)
    return BoundParameter(
        name=name, shape=shape, strides=strides, dtype=dtype, method=LoadMethod.TRACED, copies=(copy,)
    )

"""An adapter inside a vLLM worker: its matrices are received in host memory, and vLLM's manager has them from there."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from launcher.bridge.engine.worker import Worker
from launcher.bridge.manifest import Manifest
from launcher.bridge.plan import Box
from launcher.bridge.settings import Mode
from launcher.bridge.weightmap import Binding, Bound, Copy, Way
from launcher.common.errors import BridgeError


class AdapterWorker(Worker):
    """One adapter in one worker. Every worker gets all of its matrices: vLLM cuts out what a worker needs itself.

    Args:
        worker: vLLM's.
    """

    def __init__(self, worker: Any) -> None:
        self.rank, self.device = worker.rank, worker.device
        manager = getattr(worker.model_runner, "lora_manager", None)
        if manager is None:
            raise BridgeError("this engine takes no adapters. HINT: start it with `--enable-lora`.")
        self._manager = manager
        self._writer: AdapterWriter | None = None

    def _bridge_learn(self, manifest: Manifest) -> Binding:
        dtype = str(self._manager.lora_config.lora_dtype).removeprefix("torch.")
        return Binding(
            manifest=manifest, parameters=tuple(_whole(entry.name, entry.shape, dtype) for entry in manifest)
        )

    def _bridge_make_writer(self, binding: Binding, mode: Mode) -> AdapterWriter:
        assert self._bridge_facts is not None and self._bridge_facts.adapter is not None
        self._writer = AdapterWriter(binding, self._bridge_facts.adapter, self._manager, self.device)
        return self._writer

    def _bridge_stage(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._writer is not None
        self._writer.stage(int(request["lora_id"]))
        return {}


class AdapterWriter:
    """Owns the matrices that receive a version. Memory: three times the adapter, in host memory.

    Args:
        binding: of this adapter.
        config: PEFT's description.
        manager: the worker's ``WorkerLoRAManager``.
        device: of the worker.
    """

    def __init__(self, binding: Binding, config: Mapping[str, Any], manager: Any, device: torch.device) -> None:
        self._config = dict(config)
        self._manager = manager
        self._staged: Any = None
        pin = device.type == "cuda"
        self.received = {
            bound.name: torch.empty(bound.shape, dtype=getattr(torch, bound.dtype), pin_memory=pin)
            for bound in binding.parameters
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
        from vllm.lora.lora_model import LoRAModel
        from vllm.lora.peft_helper import PEFTHelper

        peft = PEFTHelper.from_dict(self._config)
        peft.validate_legal(self._manager.lora_config)
        manager = self._manager._adapter_manager
        mapper: Any = getattr(manager.model, "hf_to_vllm_mapper", None)
        if hasattr(mapper, "get_rename_mapper"):
            mapper = mapper.get_rename_mapper()
        # Copies: vLLM scales and fuses them in place.
        tensors = {name: tensor.clone() for name, tensor in self.received.items()}
        lora = LoRAModel.from_lora_tensors(
            lora_id,
            tensors,
            peft,
            device="cpu",
            dtype=self._manager.lora_config.lora_dtype,
            model_vocab_size=self._manager.vocab_size,
            weights_mapper=mapper,
        )
        known = set(manager.modules).union(*manager.packed_modules.values())
        unknown = sorted(set(lora.loras) - known)
        if unknown:
            raise BridgeError(f"the adapter is for `{unknown[0]}`, to which this engine can add none.")
        halves = [name for name, layer in lora.loras.items() if layer.lora_a is None or layer.lora_b is None]
        if halves:
            raise BridgeError(f"of the adapter's matrices for `{halves[0]}` one is missing.")
        others = manager._active_adapters.pinned_items - {lora_id}
        if len(others) >= manager.lora_slots:
            raise BridgeError(
                f"there is no room beside {len(others)} adapters. HINT: start the engine with `--max-loras`."
            )
        self._staged = lora

    def commit(self) -> None:
        """Puts it in place of the version before. The engine must not run a forward pass meanwhile."""
        lora, self._staged = self._staged, None
        if lora is None:
            raise BridgeError("the adapter that was received has not been staged")
        manager = self._manager._adapter_manager
        manager.remove_adapter(lora.id)
        if len(manager) + 1 > manager.capacity:
            manager.remove_oldest_adapter()
        manager.add_adapter(lora)
        # For good: there is no directory from which vLLM could load it again.
        manager.pin_adapter(lora.id)


def _whole(name: str, shape: tuple[int, ...], dtype: str) -> Bound:
    strides = tuple(prod(shape[dim + 1 :]) for dim in range(len(shape)))
    copy = Copy(source_name=name, source_box=Box.full(shape), parameter=name, offset=0, shape=shape, strides=strides)
    return Bound(name=name, shape=shape, strides=strides, dtype=dtype, way=Way.TRACED, copies=(copy,))

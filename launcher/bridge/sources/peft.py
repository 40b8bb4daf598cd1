"""PEFT: a model with adapters in it, published as if they were merged, without a copy of the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from launcher.bridge.plan.boxes import Box
from launcher.bridge.trainer.source import WeightSource
from launcher.common.errors import BridgeError

PREFIX = "base_model.model."
WRAPPERS = (".base_layer", ".original_module", ".modules_to_save")


def peft_source(model: nn.Module) -> WeightSource:
    """The weights of a ``PeftModel`` under the names of its base model, with its active adapters merged on the way.

    Memory: one merged weight, and the one before, at a time. Where matrices are DTensors, also those of the adapters,
    whole: each is gathered here, so every rank makes the source, and a new one for each version. Otherwise one source
    serves all versions, as long as the same adapters are active.

    Args:
        model: has LoRA layers, plain or sharded with FSDP2 or tensor parallelism, and perhaps modules to save.

    Raises:
        BridgeError: an adapter is not added to a weight (DoRA), or a layer of this kind cannot be merged while sharded.
    """
    source = WeightSource()
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "get_delta_weight")}
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *_persistent_buffers(model)):
        if ".lora_" in name:
            continue
        outer, wrapper, rest = _parted(name)
        module = model.get_submodule(outer) if wrapper else None
        if wrapper == ".modules_to_save":
            active, _, rest = rest.partition(".")
            if active not in getattr(module, "active_adapters", [getattr(module, "active_adapter", active)]):
                continue
        elif wrapper == ".original_module":
            continue
        merge = None
        if wrapper == ".base_layer" and rest == "weight" and not layers[outer].merged:
            merge = _merge(name, layers[outer], tensor)
        target = f"{outer}.{rest}" if wrapper else name
        source.add(target.removeprefix(PREFIX), tensor, compute=merge)
    return source


def _persistent_buffers(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    kept = model.state_dict(keep_vars=True)
    return [(name, tensor) for name, tensor in model.named_buffers() if name in kept]


def _parted(name: str) -> tuple[str, str, str]:
    """A name before, in and after PEFT's wrapper; no wrapper where there is none."""
    for wrapper in WRAPPERS:
        before, found, after = name.partition(wrapper + ".")
        if found:
            return before, wrapper, after
    return name, "", ""


def _merge(name: str, layer: Any, weight: torch.Tensor) -> Any:
    """From a part of the base weight to the same part with the active adapters added; None if none is active."""
    active = [adapter for adapter in layer.active_adapters if adapter in layer.scaling]
    if layer.disable_adapters or not active:
        return None
    if any(layer.use_dora.get(adapter) for adapter in active if hasattr(layer, "use_dora")):
        raise BridgeError(f"`{name}`: DoRA does not add a matrix to a weight. HINT: publish `merge_and_unload()`'s.")
    if not isinstance(weight, DTensor):
        return lambda local, _box: _sum(local, [layer.get_delta_weight(adapter) for adapter in active])
    if any(adapter not in layer.lora_A for adapter in active):
        raise BridgeError(f"`{name}` is sharded and not linear. HINT: publish what `merge_and_unload()` returns.")
    factors = [
        (layer.scaling[a] * _whole(layer.lora_B[a].weight), _whole(layer.lora_A[a].weight), layer.fan_in_fan_out)
        for a in active
    ]

    def merge(local: torch.Tensor, box: Box) -> torch.Tensor:
        rows, columns = box.slices()
        return _sum(
            local, [(a.T[rows] @ b.T[:, columns]) if turned else b[rows] @ a[:, columns] for b, a, turned in factors]
        )

    return merge


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _sum(local: torch.Tensor, deltas: list[torch.Tensor]) -> torch.Tensor:
    total = local.clone()
    for delta in deltas:
        total += delta.to(local.dtype)
    return total

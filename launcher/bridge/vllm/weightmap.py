"""The weight map of a vLLM worker: which parameters its loader writes as they stay, and how the others are reloaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from launcher.bridge.protocol import Manifest
from launcher.bridge.settings import Mode
from launcher.bridge.vllm import layers
from launcher.bridge.vllm.derived import DerivedTensors
from launcher.bridge.weightmap.build import OPTIONAL, build_weight_map
from launcher.bridge.weightmap.model import LoadMethod, WeightMap
from launcher.bridge.weightmap.state import Held
from launcher.bridge.weightmap.write import Pack, Writer
from launcher.common.errors import BridgeError

# Methods that leave a layer's parameters as the loader wrote them, on a GPU. On CPU they pack, see `_packs`.
PLAIN = frozenset(
    {"UnquantizedLinearMethod", "UnquantizedEmbeddingMethod", "PlainLinearMethod", "PlainEmbeddingMethod"}
)
# Expert kernels that compute from the loader's layout; the others swap, shuffle or pack.
PLAIN_EXPERTS = frozenset({"TRITON", "BATCHED_TRITON"})


def build_worker_map(model: nn.Module, model_config: Any, manifest: Manifest) -> WeightMap:
    """The weight map of this worker's part of the model; call it in the worker, at any time after the model is built.

    Raises:
        BridgeError: See :func:`launcher.bridge.weightmap.build.build_weight_map`.
    """
    load: Any = model.load_weights
    derived = DerivedTensors(model, model_config.dtype)
    live = live_tensors(model)
    copies = derived.copies(model, {**live, **derived.as_loaded})
    if copies:
        raise BridgeError(f"The engine keeps a copy of a parameter in `{copies[0]}`, which an update would not reach.")
    held = Held(model)
    try:
        for name, tensor in derived.as_loaded.items():
            live[name].data = tensor
        weight_map = build_weight_map(
            load,
            live,
            manifest,
            processed=processed(model),
            packed=dict.fromkeys(packers(model), "prepacked for the CPU's expert kernel"),
            optional=(*OPTIONAL, *map(re.escape, derived.names)),
        )
        changed = [path for path in held.changed() if path not in derived.as_loaded]
    finally:
        held.put_back()
    if changed:
        raise BridgeError(
            f"{type(model).__name__} does more in its `load_weights` than fill tensors: it replaces `{changed[0]}`, so"
            " that an update cannot be written where the engine reads. Nothing was changed."
        )
    return weight_map


def check_filled(model: nn.Module, weight_map: WeightMap) -> None:
    """For an engine that has loaded no checkpoint (``--load-format dummy``): what only its loader would fill is random.

    Raises:
        BridgeError: a parameter has such a region; not for rows beyond the vocabulary, which answers do not depend on.
    """
    for bound in weight_map.parameters:
        if bound.padding and not hasattr(model.get_submodule(bound.name.rpartition(".")[0]), "org_vocab_size"):
            raise BridgeError(
                f"The engine's `{bound.name}` is in part filled by vLLM when it loads a checkpoint, and by no tensor of"
                " the trainer; this engine has loaded none. HINT: start it without `--load-format dummy`."
            )


def writer(model: nn.Module, model_config: Any, weight_map: WeightMap, mode: Mode = Mode.SHADOW) -> Writer:
    """The writer of a weight map made by :func:`build_worker_map`."""
    load = loader(model, model_config, weight_map)
    derived = DerivedTensors(model, model_config.dtype)
    live = {**live_tensors(model), **derived.as_loaded}
    return Writer(weight_map, live, load=load, pack=packers(model), mode=mode, after=derived.renew)


def live_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, by all their names."""
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for prefix, module in model.named_modules():
        passing = module._non_persistent_buffers_set
        for name, buffer in module.named_buffers(recurse=False):
            if name not in passing:
                tensors.setdefault(f"{prefix}.{name}" if prefix else name, buffer)
    return tensors


def processed(model: nn.Module) -> dict[str, str]:
    """Parameters whose stored form is not what the loader writes, with the reason.

    Raises:
        BridgeError: A parameter has been emptied: the engine computes with a packed copy that nothing can update.
    """
    found: dict[str, str] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.numel() and module._parameters[name] is not None:
                raise BridgeError(
                    f"The engine has packed `{prefix}.{name}` and cannot be updated."
                    " HINT: start it with `--quantization launcher-plain`."
                )
        reason = "" if layers.packed_experts(module) is not None else _reason(module)
        if reason:
            names = [name for name, _ in module.named_parameters(recurse=False)]
            found.update((f"{prefix}.{name}" if prefix else name, reason) for name in names)
    return found


def packers(model: nn.Module) -> dict[str, Pack]:
    """Parameters that the engine packs, with how: the experts on CPU.

    vLLM packs them when it loads and never again, so that its own reload would leave the unpacked bytes there, which
    the kernel then takes for packed ones.
    """
    found: dict[str, Pack] = {}
    for prefix, module in model.named_modules():
        experts = layers.packed_experts(module)
        if experts is not None:
            for name in ("w13_weight", "w2_weight"):
                found[f"{prefix}.{name}"] = layers.expert_packer(experts)
    return found


def _reason(module: nn.Module) -> str:
    method = getattr(module, "quant_method", None)
    if method is None or not hasattr(method, "process_weights_after_loading"):
        return ""
    name = type(method).__name__
    if name == "UnquantizedFusedMoEMethod":
        backend = layers.expert_backend(method)
        if backend == "CPU":
            raise BridgeError("The engine's CPU expert kernel keeps the weights in a form that cannot be updated.")
        return "" if backend in PLAIN_EXPERTS else f"the expert kernel {backend} keeps it in a layout of its own"
    if name not in PLAIN:
        return f"{name} processes it after loading"
    if _packs(module):
        return "it is packed for this processor"
    return ""


def _packs(module: nn.Module) -> bool:
    linear = getattr(module, "cpu_linear", None)
    return linear is not None and linear is not torch.nn.functional.linear


def loader(
    model: nn.Module, model_config: Any, weight_map: WeightMap, *, layerwise: bool | None = None
) -> Callable[[Iterable[tuple[str, Tensor]]], None]:
    """For a Writer: loads whole tensors, through vLLM's layerwise reload where the engine processes any of them."""
    if layerwise is None:
        reloaded = {bound.name for bound in weight_map.parameters if bound.method is LoadMethod.RELOADED}
        layerwise = bool(processed(model).keys() & reloaded)

    def load(weights: Iterable[tuple[str, Tensor]]) -> None:
        load_weights: Any = model.load_weights
        if layerwise:
            layers.reload_weights(model, model_config, weights, torch.device(next(model.parameters()).device))
        else:
            load_weights(iter(list(weights)))

    return load

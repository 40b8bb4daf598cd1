"""A binding inside a vLLM worker: which parameters its loader writes as they stay, and how the others are reloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from launcher.bridge.manifest import Manifest
from launcher.bridge.settings import Mode
from launcher.bridge.weightmap.bind import bind
from launcher.bridge.weightmap.model import Binding, Way
from launcher.bridge.weightmap.rules import Place, Rule
from launcher.bridge.weightmap.write import Pack, Writer
from launcher.common.errors import BridgeError

# Methods that leave a layer's parameters as the loader wrote them, on a GPU. On CPU they pack, see `_packs`.
PLAIN = frozenset(
    {"UnquantizedLinearMethod", "UnquantizedEmbeddingMethod", "PlainLinearMethod", "PlainEmbeddingMethod"}
)
# Expert kernels that compute from the loader's layout; the others swap, shuffle or pack.
PLAIN_EXPERTS = frozenset({"TRITON", "BATCHED_TRITON"})


def bind_worker(
    model: nn.Module, model_config: Any, manifest: Manifest, rules: Mapping[str, Rule] | None = None
) -> Binding:
    """The binding of this worker's part of the model; call it in the worker, at any time after the model is built.

    Raises:
        BridgeError: See :func:`launcher.bridge.weightmap.bind.bind`.
    """
    load: Any = model.load_weights
    return bind(
        load,
        live_tensors(model),
        manifest,
        rules=rules,
        place=place(model_config),
        processed=processed(model),
        packed=dict.fromkeys(packers(model), "prepacked for the CPU's expert kernel"),
    )


def writer(model: nn.Module, model_config: Any, binding: Binding, mode: Mode = Mode.SHADOW) -> Writer:
    """The writer of a binding made by :func:`bind_worker`."""
    load = loader(model, model_config, binding)
    return Writer(binding, live_tensors(model), load=load, pack=packers(model), mode=mode)


def live_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, by all their names."""
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for prefix, module in model.named_modules():
        passing = module._non_persistent_buffers_set
        for name, buffer in module.named_buffers(recurse=False):
            if name not in passing:
                tensors.setdefault(f"{prefix}.{name}" if prefix else name, buffer)
    return tensors


def place(model_config: Any) -> Place:
    """This worker's place in its tensor-parallel group, and the model's heads."""
    from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

    return Place(
        tp_rank=int(get_tensor_model_parallel_rank()),
        tp_size=int(get_tensor_model_parallel_world_size()),
        heads=int(getattr(model_config.hf_text_config, "num_attention_heads", 0)),
        kv_heads=int(model_config.get_total_num_kv_heads()),
    )


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
        reason = "" if _packed_experts(module) is not None else _reason(module)
        if reason:
            names = [name for name, _ in module.named_parameters(recurse=False)]
            found.update((f"{prefix}.{name}" if prefix else name, reason) for name in names)
        if hasattr(module, "W_UK_T") or hasattr(module, "W_UV"):
            # Latent attention keeps products of this projection; writing it alone would leave them as they were.
            absorbed = "latent attention computes with matrices derived from it"
            projection = f"{prefix.rpartition('.')[0]}.kv_b_proj."
            found.update((n, absorbed) for n, _ in model.named_parameters() if n.startswith(projection))
    return found


def packers(model: nn.Module) -> dict[str, Pack]:
    """Parameters that the engine packs, with how: the experts on CPU.

    vLLM packs them when it loads and never again, so that its own reload would leave the unpacked bytes there, which
    the kernel then takes for packed ones.
    """
    found: dict[str, Pack] = {}
    for prefix, module in model.named_modules():
        experts = _packed_experts(module)
        if experts is not None:
            from vllm.model_executor.layers.fused_moe.experts.cpu_moe import cpu_prepack_moe_weight

            for name in ("w13_weight", "w2_weight"):
                found[f"{prefix}.{name}"] = partial(cpu_prepack_moe_weight, isa=experts.isa)
    return found


def _packed_experts(module: nn.Module) -> Any:
    method = getattr(module, "quant_method", None)
    if type(method).__name__ != "UnquantizedFusedMoEMethod" or not hasattr(module, "w13_weight"):
        return None
    experts = getattr(getattr(method, "moe_kernel", None), "fused_experts", None)
    config = getattr(experts, "moe_config", None)
    if config is None or not hasattr(experts, "isa") or getattr(experts, "_use_zentorch", False):
        return None
    size = config.intermediate_size_per_partition
    padded = getattr(experts, "_padded_intermediate_size", None)
    return experts if padded is None or padded(config) == size else None


def _reason(module: nn.Module) -> str:
    method = getattr(module, "quant_method", None)
    if method is None or not hasattr(method, "process_weights_after_loading"):
        return ""
    name = type(method).__name__
    if name == "UnquantizedFusedMoEMethod":
        backend = str(getattr(getattr(method, "unquantized_backend", None), "value", "unknown"))
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
    model: nn.Module, model_config: Any, binding: Binding, *, layerwise: bool | None = None
) -> Callable[[Iterable[tuple[str, Tensor]]], None]:
    """For a Writer: loads whole tensors, through vLLM's layerwise reload where the engine processes any of them."""
    if layerwise is None:
        staged = {bound.name for bound in binding.parameters if bound.way is Way.STAGED}
        layerwise = bool(processed(model).keys() & staged)

    def load(weights: Iterable[tuple[str, Tensor]]) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        load_weights: Any = model.load_weights
        if not layerwise:
            load_weights(iter(list(weights)))
            return
        device = next(model.parameters()).device
        with torch.device(device):
            initialize_layerwise_reload(model)
            load_weights(iter(list(weights)))
            finalize_layerwise_reload(model, model_config)

    return load

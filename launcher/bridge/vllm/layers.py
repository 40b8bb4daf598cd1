"""What vLLM's layers keep of their weights besides parameters, and how it is made again; the releases differ in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any


def packed_experts(module: Any) -> Any:
    """A layer's expert kernel if it computes from a packed copy of the layer's parameters (on CPU); None if not."""
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


def expert_packer(experts: Any) -> Callable[[Any], Any]:
    """How an expert kernel of :func:`packed_experts` packs a parameter."""
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import cpu_prepack_moe_weight

    return partial(cpu_prepack_moe_weight, isa=experts.isa)


def expert_backend(method: Any) -> str:
    """vLLM's name of the kernel of an unquantized layer of experts."""
    return str(getattr(getattr(method, "unquantized_backend", None), "value", "unknown"))


@dataclass(frozen=True, slots=True)
class PackedConvolution:
    """A convolution whose weight vLLM has packed for this processor, beside the weight as it was loaded."""

    name: str
    module: Any
    mirrors: tuple[Any, ...]
    """More tensors with the weight as it was loaded, which a mixer took from it before it was packed."""

    @property
    def loaded(self) -> Any:
        """The weight as the loader wrote it: ``(channels, 1, width)``."""
        return self.module._cpu_unpacked_conv_weight.unsqueeze(1)

    def renew(self) -> None:
        """Packs the loaded weight again, into the memory that the kernel reads."""
        from vllm import _custom_ops as ops

        unpacked = self.module._cpu_unpacked_conv_weight
        self.module.weight.data.copy_(ops.causal_conv1d_weight_pack(unpacked))
        for mirror in self.mirrors:
            mirror.copy_(unpacked.view(mirror.shape))


def packed_convolutions(model: Any) -> list[PackedConvolution]:
    """On a CPU, the convolutions that vLLM packs."""
    found = []
    for prefix, module in model.named_modules():
        for name, child in module.named_children():
            if getattr(child, "_cpu_unpacked_conv_weight", None) is not None:
                mirror = getattr(module, "conv_weights", None)
                path = f"{prefix}.{name}.weight".lstrip(".")
                found.append(PackedConvolution(path, child, () if mirror is None else (mirror,)))
    return found


def is_processed_attention(module: Any) -> bool:
    """Whether vLLM lets an attention layer compute something from its weights after all layers are loaded."""
    return hasattr(module, "impl") and callable(getattr(module, "process_weights_after_loading", None))


def keep_linear_weights() -> None:
    """On a CPU, has linear layers that are built without a quantization method compute from their parameter, too.

    vLLM asks this one function for the kernel of each layer; it packs the weight and drops the parameter.
    """
    import torch
    from vllm.model_executor.layers import utils

    original = utils.dispatch_cpu_unquantized_gemm
    if getattr(original, "keeps_weights", False):
        return

    def dispatch(layer: Any, remove_weight: bool) -> None:
        if layer.weight.dim() == 2:
            layer.cpu_linear = torch.nn.functional.linear
        else:
            original(layer, remove_weight)

    dispatch.keeps_weights = True  # type: ignore[attr-defined]
    utils.dispatch_cpu_unquantized_gemm = dispatch


def reload_weights(
    model: Any, model_config: Any, weights: Iterable[tuple[str, Any]], device: AbstractContextManager[Any] | None
) -> None:
    """Loads whole tensors through vLLM's layerwise reload, which processes them as at the start.

    Args:
        device: context in which new tensors are made on the model's device.
    """
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    with device or nullcontext():
        initialize_layerwise_reload(model)
        model.load_weights(iter(list(weights)))
        finalize_layerwise_reload(model, model_config)

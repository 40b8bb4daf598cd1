"""Linear layers whose weight stays what it is: on CPU, vLLM otherwise computes with a packed copy made at load time.

Depending on the processor, vLLM hands its linear layers to oneDNN or to AMX kernels, which repack the weight once; the
parameter is then emptied, or is left in place and never looked at again, and a weight written into it would silently
change nothing. Registered under vLLM's extension point for quantization methods and chosen with ``--quantization`` on
CPU; it quantizes nothing. GPU layers compute from their parameters anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding

from launcher.bridge.vllm.layers import keep_linear_weights

NAME = "launcher-plain"


class PlainLinearMethod(UnquantizedLinearMethod):
    """``torch.nn.functional.linear`` on the live parameter."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Leaves the weight alone."""
        layer.cpu_linear = torch.nn.functional.linear


class PlainEmbeddingMethod(UnquantizedEmbeddingMethod):
    """The same for embeddings and the output layer."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Leaves the weight alone."""
        layer.cpu_linear = torch.nn.functional.linear


@register_quantization_config(NAME)
class PlainConfig(QuantizationConfig):
    """Chooses the plain methods for linear layers and embeddings, and vLLM's own for everything else."""

    def __init__(self) -> None:
        super().__init__()
        keep_linear_weights()  # routers and gates are built without any method

    def get_name(self) -> str:
        """The name for ``--quantization``."""
        return NAME

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Every type that a model may compute in."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """No GPU is asked for."""
        return -1

    @staticmethod
    def get_config_filenames() -> list[str]:
        """Nothing is read from the checkpoint."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PlainConfig:
        """There is nothing to configure."""
        return cls()

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """The method of one layer; None leaves the choice to vLLM."""
        if isinstance(layer, LinearBase):
            return PlainLinearMethod()
        if isinstance(layer, VocabParallelEmbedding):
            return PlainEmbeddingMethod()
        return None


def use_live_weights(model: nn.Module) -> list[str]:
    """Makes embeddings that were built without a quantization method compute from their parameter, too.

    Returns:
        Names of layers that cannot: their parameter has been emptied.
    """
    module: Any
    for module in model.modules():
        if "cpu_linear" in vars(module):
            module.cpu_linear = torch.nn.functional.linear
    return [name for name, parameter in model.named_parameters() if parameter.numel() == 0]

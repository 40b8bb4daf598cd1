"""torchtitan: its modules, as they are parallelized, under the names of Hugging Face."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from launcher.bridge.plan.tensor_map import TensorMap
from launcher.bridge.trainer.source import WeightSource, grouped_qkv, rotary_halves, rows
from launcher.common.errors import BridgeError

FUSED = ".qkv_linear.wqkv."
WRAPPERS = re.compile(r"(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")


def torchtitan_source(model: nn.Module | Sequence[nn.Module], adapter: Any) -> WeightSource:
    """The weights of a torchtitan model, for engines that were started with the checkpoint in Hugging Face's format.

    Names come from torchtitan's own table. A fused query, key and value is taken apart, rotary pairs become halves
    where torchtitan's adapter does so (Llama), and stacked experts are one matrix each: all as views, of shards as they
    lie. Memory: none. One source serves all versions.

    Args:
        model: after ``parallelize``: FSDP2, tensor and expert parallelism; the parts of a pipeline that this rank has.
        adapter: the model's ``StateDictAdapter``, as the trainer's checkpointer has it.

    Raises:
        BridgeError: the adapter has no name for a parameter.
    """
    config = adapter.model_config
    attention = config.layers[0].attention
    heads = attention.n_heads
    kv_heads = attention.n_kv_heads or heads
    is_interleaved = hasattr(adapter, "_permute")
    names = {ours: theirs for theirs, ours in adapter.from_hf_map.items() if ours is not None}
    source = WeightSource()

    def target(name: str) -> tuple[str, str]:
        layer = re.search(r"\d+", name)
        abstract = re.sub(r"\d+", "{}", name, count=1)
        if abstract not in names and abstract.endswith(".bias"):
            # The table has weights; biases are named alike.
            names[abstract] = names.get(abstract.removesuffix("bias") + "weight", "").removesuffix("weight") + "bias"
        if len(names.get(abstract, "")) <= len("bias"):
            raise BridgeError(f"torchtitan's adapter has no name of Hugging Face for `{name}`.")
        return names[abstract], "" if layer is None else layer[0]

    for part in [model] if isinstance(model, nn.Module) else model:
        for raw, tensor in part.named_parameters(remove_duplicate=False):
            name = WRAPPERS.sub("", raw)
            if name == "lm_head.weight" and getattr(config, "enable_weight_tying", False):
                continue
            if FUSED in name:
                size = tensor.shape[0] // (heads + 2 * kv_heads)
                for which, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
                    pattern, layer = target(name.replace(FUSED, f".qkv_linear.w{which}."))
                    runs = grouped_qkv(
                        tensor.shape[0], which, per_group=heads // kv_heads, size=size, interleaved=is_interleaved
                    )
                    shape = (count * size, *tensor.shape[1:])
                    maps = rows(tensor.shape, runs)
                    source.add(pattern.format(layer), tensor, maps=maps, target_shape=shape)
                continue
            pattern, layer = target(name)
            if pattern.count("{}") == 2:
                _add_experts(source, pattern, layer, tensor)
                continue
            turned = re.search(r"\.w([qk])\.", name) if is_interleaved else None
            counted = heads if turned is not None and turned[1] == "q" else kv_heads
            halves = None if turned is None else rotary_halves(tensor.shape, counted)
            source.add(pattern.format(layer), tensor, maps=halves)
    return source


def _add_experts(source: WeightSource, pattern: str, layer: str, tensor: torch.Tensor) -> None:
    """One matrix of each expert, out of (experts, rows, columns)."""
    count, *shape = tensor.shape
    for expert in range(count):
        tensor_map = TensorMap(start=(expert, 0, 0), shape=(1, *shape), target=(0, 0), axes=(1, 2))
        source.add(pattern.format(layer, expert), tensor, maps=(tensor_map,), target_shape=shape)

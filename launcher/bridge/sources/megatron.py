"""Megatron-Core: a rank's part of a GPT model, tensor-, pipeline- and expert-parallel, under names of Hugging Face."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn

from launcher.bridge.trainer.source import WeightSource, grouped_qkv, rows
from launcher.common.errors import BridgeError

LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
EXPERT = re.compile(r"mlp\.experts\.(?:local_experts\.(\d+)\.(linear_fc[12])\.weight|(linear_fc[12])\.weight(\d+))")
NORMS = {
    "input_layernorm": "input_layernorm",
    "self_attention.linear_qkv.layer_norm": "input_layernorm",
    "pre_mlp_layernorm": "post_attention_layernorm",
    "mlp.linear_fc1.layer_norm": "post_attention_layernorm",
    "self_attention.q_layernorm": "self_attn.q_norm",
    "self_attention.k_layernorm": "self_attn.k_norm",
    "mlp.router": "mlp.gate",
}
"""What every rank of a stage has whole."""

VOCABULARIES = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "output_layer.weight": "lm_head.weight",
}
ROW_PARALLEL = {
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MegatronPlace:
    """Which part of the model this rank has, and what of the model that depends on."""

    heads: int
    groups: int
    """Key/value heads (``num_query_groups``)."""

    vocabulary: int
    """Rows of the checkpoint's embedding, without Megatron's padding."""

    tp_rank: int = 0
    tp_size: int = 1
    first_layer: int = 0
    """Number of this stage's first layer in the model."""

    first_expert: int = 0
    """Number of this rank's first expert in each layer."""


def megatron_source(model: nn.Module, place: MegatronPlace) -> WeightSource:
    """What this rank has of a ``GPTModel`` with gated MLPs, local or Transformer Engine layers, dense or experts.

    Query, key and value are taken out of their groups, gate and up out of a rank's ``linear_fc1``, padding of the
    vocabulary is left out, and layers and experts get their numbers in the model: all as views. Memory: none. One
    source serves all versions. Expert tensor parallelism is not supported.

    Raises:
        BridgeError: a parameter has no counterpart in the checkpoint.
    """
    found = _Megatron(place)
    for name, tensor in model.named_parameters(remove_duplicate=False):
        found.add(name.removeprefix("module."), tensor)
    return found.source


class _Megatron:
    def __init__(self, place: MegatronPlace) -> None:
        self.source = WeightSource()
        self._place = place

    def add(self, name: str, tensor: torch.Tensor) -> None:
        layer = LAYER.fullmatch(name)
        if name in VOCABULARIES:
            self._vocabulary(VOCABULARIES[name], tensor)
        elif name.startswith("decoder.final_layernorm."):
            self.source.add(f"model.norm.{name.rpartition('.')[2]}", tensor)
        elif layer is None or not self._in_layer(int(layer[1]), layer[2], tensor):
            raise BridgeError(f"`{name}` of Megatron-Core has no counterpart in a checkpoint of Hugging Face.")

    def _in_layer(self, number: int, rest: str, tensor: torch.Tensor) -> bool:
        place = self._place
        head = f"model.layers.{number + place.first_layer}"
        module, _, kind = rest.rpartition(".")
        norm = module if module in NORMS else rest.rpartition("_")[0]
        if (expert := EXPERT.fullmatch(rest)) is not None:
            prefix = f"{head}.mlp.experts.{place.first_expert + int(expert[1] or expert[4])}"
            if (expert[2] or expert[3]) == "linear_fc1":
                self._gated(prefix + ".{}_proj.weight", tensor, 0, 1)
            else:
                self.source.add(f"{prefix}.down_proj.weight", tensor)
        elif norm in NORMS:
            self.source.add(f"{head}.{NORMS[norm]}.{kind.rpartition('_')[2]}", tensor)
        elif module == "self_attention.linear_qkv":
            self._qkv(f"{head}.self_attn.{{}}_proj.{kind}", tensor)
        elif module == "mlp.linear_fc1":
            self._gated(f"{head}.mlp.{{}}_proj.{kind}", tensor, place.tp_rank, place.tp_size)
        elif rest in ROW_PARALLEL:
            self._columns(f"{head}.{ROW_PARALLEL[rest]}", tensor)
        else:
            return False
        return True

    def _columns(self, name: str, tensor: torch.Tensor) -> None:
        place, (height, width) = self._place, tensor.shape
        self.source.add(name, tensor, start=(0, place.tp_rank * width), shape=(height, width * place.tp_size))

    def _vocabulary(self, name: str, tensor: torch.Tensor) -> None:
        """Without the rows that pad it."""
        first = self._place.tp_rank * tensor.shape[0]
        count = max(0, min(tensor.shape[0], self._place.vocabulary - first))
        if count:
            whole = (self._place.vocabulary, tensor.shape[1])
            self.source.add(name, tensor.detach()[:count], start=(first, 0), shape=whole)

    def _gated(self, name: str, tensor: torch.Tensor, rank: int, ranks: int) -> None:
        half = tensor.shape[0] // 2
        for index, which in enumerate(("gate", "up")):
            maps = rows(tensor.shape, [(index * half, half, rank * half)])
            shape = (half * ranks, *tensor.shape[1:])
            self.source.add(name.format(which), tensor, maps=maps, target_shape=shape)

    def _qkv(self, name: str, tensor: torch.Tensor) -> None:
        place = self._place
        groups, per_group = place.groups // place.tp_size, place.heads // place.groups
        head = tensor.shape[0] // (groups * (per_group + 2))
        for which, count in (("q", place.heads), ("k", place.groups), ("v", place.groups)):
            runs = grouped_qkv(
                tensor.shape[0], which, per_group=per_group, size=head, first_group=place.tp_rank * groups
            )
            shape = (count * head, *tensor.shape[1:])
            self.source.add(name.format(which), tensor, maps=rows(tensor.shape, runs), target_shape=shape)

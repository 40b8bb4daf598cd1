"""Models from a transformers configuration, small enough to be started in seconds; nothing is taken from a hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, Any] = {
    "vocab_size": 200,  # vLLM pads it
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One model to try."""

    model_type: str
    """transformers' word."""

    base: Mapping[str, Any] | None = None
    """A configuration to begin with; None for transformers' own with :data:`SIZES`."""

    sizes: Mapping[str, Any] = field(default_factory=dict)
    """Of the configuration, over :data:`SIZES`; None leaves one out."""

    engine: Mapping[str, Any] = field(default_factory=dict)
    """Options of vLLM's ``LLM``."""

    def module(self, dtype: torch.dtype) -> Any:
        """A trainer's module with random weights."""
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        sizes = {key: value for key, value in self.sizes.items() if value is not None}
        base = {key: value for key, value in (self.base or SIZES).items() if key not in self.sizes}
        config = AutoConfig.for_model(self.model_type, **base, **sizes)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]


def of_path(path: Path, *, whole: bool = False) -> Architecture:
    """A model of a directory's ``config.json``; small, with as many layers as show each kind once, unless ``whole``.

    Raises:
        ValueError: there is no such file, or it names no model type.
    """
    try:
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
        model_type = str(found.pop("model_type"))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"`{path}/config.json` is not a model's configuration: {error!r}") from error
    return Architecture(model_type=model_type, base=found, sizes={} if whole else _small(found))


def _small(config: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {key: value for key, value in config.items() if key in LARGEST and isinstance(value, int)}
    sizes: dict[str, Any] = {key: min(value, LARGEST[key]) for key, value in numbers.items()}
    layers = config.get("layer_types")
    if isinstance(layers, list):
        kinds = dict.fromkeys(layers)
        sizes["num_hidden_layers"] = max(2, len(kinds))
        sizes["layer_types"] = [*kinds, *layers][: sizes["num_hidden_layers"]]
    if "head_dim" not in config and isinstance(config.get("hidden_size"), int):
        sizes["hidden_size"] = 32 * sizes.get("num_attention_heads", 4)
    return sizes


LARGEST = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
"""What a small model has at most of each size; what is not named here stays as it is."""

TIED = {"tie_word_embeddings": True}
UNTIED = {"tie_word_embeddings": False}
HEAD = {"head_dim": 32}
EXPERTS = {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}
MLA = {
    "moe_intermediate_size": 64,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 512,
    "q_lora_rank": 48,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 64,
    "v_head_dim": 32,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
SSM = {"mamba_d_state": 16, "mamba_d_head": 32, "mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_expand": 2}


def _of(model_type: str, **sizes: Any) -> Architecture:
    return Architecture(model_type=model_type, sizes=sizes)


ARCHITECTURES: dict[str, Architecture] = {
    "llama": _of("llama", **UNTIED),
    "llama-tied": _of("llama", **TIED),
    "llama-one-kv-head": _of("llama", num_key_value_heads=1),
    "llama-with-adapters": Architecture(model_type="llama", sizes=TIED, engine={"enable_lora": True}),
    "mistral": _of("mistral", sliding_window=16),
    "ministral": _of("ministral", sliding_window=16, head_dim=32, layer_types=["sliding_attention", "full_attention"]),
    "qwen2": _of("qwen2", **UNTIED),
    "qwen2-tied": _of("qwen2", **TIED),
    "qwen2-moe": _of("qwen2_moe", shared_expert_intermediate_size=64, **EXPERTS),
    "qwen3": _of("qwen3", **HEAD, **UNTIED),
    "qwen3-tied": _of("qwen3", **HEAD, **TIED),
    "qwen3-moe": _of("qwen3_moe", **HEAD, **EXPERTS),
    "qwen3-moe-expert-parallel": Architecture(
        model_type="qwen3_moe", sizes={**HEAD, **EXPERTS}, engine={"enable_expert_parallel": True}
    ),
    "qwen3-moe-tied": _of("qwen3_moe", **HEAD, **EXPERTS, **TIED),
    "qwen3-next": _of(
        "qwen3_next",
        **HEAD,
        **EXPERTS,
        shared_expert_intermediate_size=64,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        layer_types=["linear_attention", "full_attention"],
    ),
    "gemma": _of("gemma", **HEAD),
    "gemma2": _of("gemma2", **HEAD, query_pre_attn_scalar=32, sliding_window=16),
    "gemma3": _of("gemma3_text", **HEAD, query_pre_attn_scalar=32, sliding_window=16),
    "phi": _of("phi", num_key_value_heads=4),
    "phi3": _of("phi3"),
    "phimoe": _of("phimoe", num_local_experts=4),
    "mixtral": _of("mixtral", num_local_experts=4),
    "gpt-oss": _of("gpt_oss", **HEAD, num_local_experts=4, num_experts_per_tok=2, sliding_window=16),
    "gpt2": _of("gpt2", n_embd=128, n_layer=2, n_head=4, n_positions=128),
    "gptj": _of("gptj", n_embd=128, n_layer=2, n_head=4, n_positions=128, rotary_dim=16),
    "gpt-neox": _of("gpt_neox"),
    "gpt-bigcode": _of("gpt_bigcode", n_embd=128, n_layer=2, n_head=4, n_positions=128, num_key_value_heads=None),
    "opt": _of("opt", ffn_dim=256, word_embed_proj_dim=128),
    "bloom": _of("bloom", n_layer=2, n_head=4),
    "falcon": _of("falcon", new_decoder_architecture=True, num_kv_heads=2),
    "stablelm": _of("stablelm"),
    "starcoder2": _of("starcoder2", sliding_window=None),
    "olmo": _of("olmo"),
    "olmo2": _of("olmo2"),
    "olmo3": _of("olmo3", sliding_window=16),
    "olmoe": _of("olmoe", num_experts=4, num_experts_per_tok=2),
    "cohere": _of("cohere"),
    "cohere2": _of("cohere2", sliding_window=16),
    "granite": _of("granite"),
    "granite-moe": _of("granitemoe", num_local_experts=4, num_experts_per_tok=2),
    "granite-moe-shared": _of(
        "granitemoeshared", num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=64
    ),
    "granite-moe-hybrid": _of(
        "granitemoehybrid",
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=64,
        layer_types=["mamba", "attention"],
        **SSM,
    ),
    "nemotron": _of("nemotron", head_dim=32),
    "nemotron-h": _of(
        "nemotron_h",
        head_dim=32,
        layers_block_type=["mamba", "mlp", "attention"],
        num_hidden_layers=3,
        ssm_state_size=16,
        mamba_num_heads=8,
        mamba_head_dim=32,
        n_groups=2,
    ),
    "mamba": _of("mamba", state_size=16),
    "mamba2": _of("mamba2", state_size=16, num_heads=8, head_dim=32, n_groups=2),
    "falcon-mamba": _of("falcon_mamba", state_size=16),
    "jamba": _of(
        "jamba",
        num_experts=4,
        mamba_d_state=16,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
    ),
    "bamba": _of("bamba", attn_layer_indices=[1], layer_types=["mamba", "attention"], **SSM),
    "falcon-h1": _of("falcon_h1", **SSM, mamba_d_ssm=256),
    "zamba2": _of(
        "zamba2",
        mamba_d_state=16,
        mamba_headdim=32,
        mamba_ngroups=1,
        n_mamba_heads=8,
        num_key_value_heads=4,
        layers_block_type=["mamba", "hybrid"],
        use_mem_rope=True,
        num_mem_blocks=1,
    ),
    "lfm2": _of(
        "lfm2", conv_dim=128, block_dim=128, block_auto_adjust_ff_dim=False, layer_types=["conv", "full_attention"]
    ),
    "lfm2-moe": _of("lfm2_moe", **EXPERTS, num_dense_layers=1, layer_types=["conv", "full_attention"]),
    "glm": _of("glm", **HEAD),
    "glm4": _of("glm4", **HEAD),
    "glm4-moe": _of(
        "glm4_moe", **HEAD, moe_intermediate_size=64, n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=1
    ),
    "glm4-moe-lite": _of("glm4_moe_lite", **MLA),
    "deepseek-v2": _of("deepseek_v2", **MLA),
    "deepseek-v2-lite": _of("deepseek_v2", **{**MLA, "q_lora_rank": None}),
    "deepseek-v3": _of("deepseek_v3", topk_method="noaux_tc", **MLA),
    "ernie4.5": _of("ernie4_5", **HEAD),
    "ernie4.5-moe": _of("ernie4_5_moe", moe_intermediate_size=64, moe_num_experts=4, moe_k=2, moe_num_shared_experts=1),
    "exaone4": _of("exaone4", sliding_window=16, layer_types=["sliding_attention", "full_attention"]),
    "hunyuan-dense": _of("hunyuan_v1_dense", **HEAD),
    "hunyuan-moe": _of("hunyuan_v1_moe", **HEAD, num_experts=4, moe_topk=2),
    "smollm3": _of("smollm3"),
    "seed-oss": _of("seed_oss", **HEAD),
    "apertus": _of("apertus"),
    "arcee": _of("arcee"),
    "dots1": _of(
        "dots1",
        moe_intermediate_size=64,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        first_k_dense_replace=1,
        **HEAD,
    ),
    "minimax-m2": _of(
        "minimax_m2",
        **HEAD,
        scoring_func="sigmoid",
        use_routing_bias=True,
        num_local_experts=4,
        num_experts_per_tok=2,
        rotary_dim=16,
    ),
    "llama4": _of(
        "llama4_text",
        **HEAD,
        num_local_experts=4,
        intermediate_size_mlp=256,
        attention_chunk_size=128,
        moe_layers=[1],
        interleave_moe_layer_step=2,
    ),
}

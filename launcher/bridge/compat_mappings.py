"""The names of a Hugging Face model's parameters, and where vLLM keeps them: the earlier bridge's JSON, made right."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor

from launcher.bridge.trainer.module_state import weights

FILE = "vllm_bridge_config.json"

# (trainer's name, engine's name, dimension that tensor parallelism splits); the first match wins. Both spellings in
# use: Hugging Face's (q_proj, gate_proj) and Meta's (wq, w1).
RULES: tuple[tuple[str, str, int | None], ...] = (
    (r"\.(?:q_proj|k_proj|v_proj)\.", ".qkv_proj.", 0),
    (r"\.(?:wq|wk|wv)\.", ".qkv_proj.", 0),
    (r"\.experts\.\d+\.(?:gate_proj|up_proj|w1|w3)\.weight$", ".experts.w13_weight", 0),
    (r"\.experts\.\d+\.(?:down_proj|w2)\.weight$", ".experts.w2_weight", 1),
    (r"\.(?:gate_proj|up_proj|w1|w3)\.", ".gate_up_proj.", 0),
    (r"\.(o_proj|wo|down_proj|w2)\.weight$", r".\1.weight", 1),
    (r"\b(embed_tokens|tok_embeddings|lm_head|output)\.weight$", r"\1.weight", 0),
)
ROTARY = re.compile(r"\.(?:wq|wk)\.")


def export_param_mappings(
    model: nn.Module,
    model_name: str,
    tp_degree: int = 1,
    dp_shard_degree: int = 1,
    log_dir: str | Path | None = None,
) -> Path:
    """Writes ``vllm_bridge_config.json`` for a model, whole or not at all.

    Each parameter has ``vllm_name``, ``shape``, ``local_shape`` (of this rank's shard), ``dtype``, ``tp_shard_dim``
    (None if tensor parallelism replicates it) and ``needs_permute`` (query and key in Meta's rotary order).

    Args:
        log_dir: where to write; ``$LOGDIR`` if None.

    Returns:
        The file.

    Raises:
        ValueError: neither ``log_dir`` nor ``$LOGDIR`` is given, or the model has no parameters.
    """
    target = log_dir or os.environ.get("LOGDIR")
    if target is None:
        raise ValueError("`log_dir` is None and `LOGDIR` is not set: there is nowhere to write the mapping.")
    mappings = {weight.name: _mapping(weight.name, weight.tensor) for weight in weights(model)}
    if not mappings:
        raise ValueError("The model has no parameters: an empty mapping would make every update an empty one.")
    path = Path(target) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{FILE}.{os.getpid()}")
    content = {
        "model": model_name,
        "tp_degree": tp_degree,
        "dp_shard_degree": dp_shard_degree,
        "param_mappings": mappings,
    }
    draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)
    return path


def _mapping(name: str, tensor: Any) -> dict[str, Any]:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    vllm_name, shard_dim = vllm_location(name)
    return {
        "vllm_name": vllm_name,
        "shape": list(tensor.shape),
        "local_shape": list(local.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "tp_shard_dim": shard_dim,
        "needs_permute": ROTARY.search(name) is not None,
    }


def vllm_location(name: str) -> tuple[str, int | None]:
    """vLLM's name of a trainer's parameter, fused ones included, and the dimension that tensor parallelism splits."""
    for pattern, replacement, shard_dim in RULES:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed, shard_dim
    return name, None

"""The second way: a table of rules from trainer names to engine parameters, for what the loader hides.

The file is the bridge's parameter mapping, ``vllm_bridge_config.json``::

    {"model": ..., "tp_degree": 2, "param_mappings": {
        "model.layers.0.self_attn.q_proj.weight": {
            "vllm_name": "model.layers.0.self_attn.qkv_proj.weight", "tp_shard_dim": 0, "needs_permute": false, ...}}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from launcher.common.errors import BridgeError

QUERY = ("q_proj", "wq")
PARTS = {"q_proj": 0, "k_proj": 1, "v_proj": 2, "wq": 0, "wk": 1, "wv": 2}
HALVES = {"gate_proj": 0, "up_proj": 1, "w1": 0, "w3": 1}
PADDED = ("embed_tokens", "lm_head", "tok_embeddings", "output")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Where one trainer tensor goes."""

    vllm_name: str
    tp_shard_dim: int | None = None
    """Dimension of the trainer tensor that tensor parallelism cuts; None where every rank has it whole."""

    needs_permute: bool = False
    """The rotary halves of each head are interleaved in the trainer and one after the other in the engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What of the engine the rules depend on."""

    tp_rank: int = 0
    tp_size: int = 1
    heads: int = 0
    """Query heads of the whole model."""

    kv_heads: int = 0


def read_rules(path: Path) -> dict[str, Rule]:
    """The rules of a mapping file, by trainer name.

    Raises:
        BridgeError: It is not such a file.
    """
    try:
        return parse_rules(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise BridgeError(f"`{path}` is not a parameter mapping: {error}") from error


def parse_rules(data: Mapping[str, Any]) -> dict[str, Rule]:
    """The rules of the JSON form.

    Raises:
        BridgeError: An entry has no ``vllm_name``.
    """
    rules = {}
    for name, item in data.get("param_mappings", {}).items():
        if "vllm_name" not in item:
            raise BridgeError(f"`param_mappings.{name}` has no `vllm_name`.")
        dim = item.get("tp_shard_dim")
        rules[name] = Rule(
            vllm_name=str(item["vllm_name"]),
            tp_shard_dim=None if dim is None else int(dim),
            needs_permute=bool(item.get("needs_permute", False)),
        )
    return rules


def fused_name(name: str, parameters: Mapping[str, Any]) -> str:
    """The engine's parameter for a name that may be that of one of its parts."""
    if name in parameters:
        return name
    parts = name.split(".")
    for i, part in enumerate(parts):
        into = "qkv_proj" if part in PARTS else "gate_up_proj" if part in HALVES else None
        if into is None:
            continue
        fused = ".".join([*parts[:i], into, *parts[i + 1 :]])
        if fused in parameters:
            return fused
        if part in HALVES:
            # ``experts.w1.weight`` and ``experts.3.w1.weight`` both go into ``experts.w13_weight``.
            before = parts[:i] if not parts[i - 1].isdecimal() else parts[: i - 1]
            stacked = ".".join([*before, "w13_" + "_".join(parts[i + 1 :])])
            if stacked in parameters:
                return stacked
    return name


def is_padded(name: str) -> bool:
    """Whether a tensor's rows are a vocabulary, which engines pad."""
    return any(component in PADDED for component in name.split("."))


def views(name: str, source: Tensor, rule: Rule, parameter: Tensor, place: Place) -> tuple[Tensor, Tensor]:
    """The view of the parameter and the view of the trainer tensor, of one shape, that are to be copied.

    Raises:
        BridgeError: The shapes do not fit.
    """
    components = name.split(".")
    if rule.needs_permute:
        source = _rotary(name, source, place)
    part = next((PARTS[c] for c in components if c in PARTS), None)
    half = next((HALVES[c] for c in components if c in HALVES), None)
    if part is not None and "qkv_proj" in rule.vllm_name.split("."):
        view, source = _qkv(name, part, source, parameter, place)
    elif half is not None and ("gate_up_proj" in rule.vllm_name or "w13_" in rule.vllm_name):
        view = parameter
        after = components[components.index("experts") :] if "experts" in components else []
        expert = next((int(component) for component in after if component.isdecimal()), None)
        if parameter.dim() == source.dim() + 1 and expert is not None:
            view = view[expert]
        dim = view.dim() - 2 if view.dim() > 1 else 0
        rows = view.shape[dim] // 2
        view, source = view.narrow(dim, half * rows, rows), _cut(name, source, dim, rows, place.tp_rank)
    else:
        view = parameter
        if rule.tp_shard_dim is not None:
            view, source = _shard(name, source, view, rule.tp_shard_dim, place.tp_rank)
    if view.shape != source.shape:
        raise BridgeError(
            f"`{name}` gives {tuple(source.shape)} for rank {place.tp_rank} of {place.tp_size}, but its place in"
            f" `{rule.vllm_name}` has {tuple(view.shape)}. HINT: correct `tp_shard_dim` of this name in the mapping."
        )
    return view, source


def _qkv(name: str, part: int, source: Tensor, parameter: Tensor, place: Place) -> tuple[Tensor, Tensor]:
    if not place.heads or not place.kv_heads:
        raise BridgeError(f"The rule for `{name}` needs the numbers of heads of the model.")
    copies = max(1, place.tp_size // place.kv_heads)
    heads, kv_heads = place.heads // place.tp_size, max(1, place.kv_heads // place.tp_size)
    head = parameter.shape[0] // (heads + 2 * kv_heads)
    start = (0, heads, heads + kv_heads)[part] * head
    rows = (heads, kv_heads, kv_heads)[part] * head
    rank = place.tp_rank if part == 0 else place.tp_rank // copies
    return parameter.narrow(0, start, rows), _cut(name, source, 0, rows, rank)


def _rotary(name: str, source: Tensor, place: Place) -> Tensor:
    query = any(component in QUERY for component in name.split("."))
    heads = place.heads if query else place.kv_heads
    if not heads or source.shape[0] % (2 * heads):
        raise BridgeError(f"`{name}` {tuple(source.shape)} cannot be permuted: it has not 2 x {heads} x n rows.")
    half = source.shape[0] // heads // 2
    rest = source.shape[1:]
    return source.view(heads, half, 2, *rest).transpose(1, 2).reshape(source.shape)


def _shard(name: str, source: Tensor, view: Tensor, dim: int, rank: int) -> tuple[Tensor, Tensor]:
    size = view.shape[dim]
    if dim == 0 and is_padded(name):
        start = min(rank * size, source.shape[0])
        rows = min(size, source.shape[0] - start)
        return view.narrow(0, 0, rows), source.narrow(0, start, rows)
    return view, _cut(name, source, dim, size, rank)


def _cut(name: str, source: Tensor, dim: int, size: int, rank: int) -> Tensor:
    if (rank + 1) * size > source.shape[dim]:
        raise BridgeError(f"`{name}` {tuple(source.shape)} has no part {rank} of {size} along dimension {dim}.")
    return source.narrow(dim, rank * size, size)

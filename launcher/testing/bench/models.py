"""Models on paper: the trainer's tensors and each engine rank's parameters, from configuration numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from launcher.bridge.plan.requirements import Parameter
from launcher.bridge.plan.sharding import TensorSpec
from launcher.testing.bench.engine_layout import WHOLE, Slice, experts, fused, qkv, replicated, sharded, vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A decoder, dense or mixture of experts; the fields are those of a transformers ``config.json``."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool = False
    qk_norm: bool = False
    attention_bias: bool = False
    num_experts: int = 0
    moe_intermediate_size: int = 0
    num_shared_experts: int = 0
    first_dense_layers: int = 0
    dtype: str = "bfloat16"

    def tensors(self) -> tuple[TensorSpec, ...]:
        """The trainer's tensors, under the names of the checkpoint: one per expert and projection."""
        return tuple(_specs(self).values())

    def parameters(self, tp: Slice, ep: Slice = WHOLE) -> tuple[Parameter, ...]:
        """One engine rank's parameters, under vLLM's fused names.

        Args:
            tp: Place in the tensor-parallel group.
            ep: Place in the expert-parallel group; with size 1 the experts are tensor parallel too.
        """
        specs = _specs(self)
        vocab = -(-self.vocab_size // (64 * tp.size)) * 64 * tp.size
        found = [vocabulary("model.embed_tokens.weight", specs["model.embed_tokens.weight"], padded_to=vocab, tp=tp)]
        for layer in range(self.num_layers):
            found += self._layer(f"model.layers.{layer}.", layer, specs, tp, ep)
        found.append(replicated("model.norm.weight", specs["model.norm.weight"]))
        head = specs["model.embed_tokens.weight" if self.tie_word_embeddings else "lm_head.weight"]
        found.append(vocabulary("lm_head.weight", head, padded_to=vocab, tp=tp))
        return tuple(found)

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and whole shapes of the trainer's tensors."""
        hidden = self.hidden_size
        yield "model.embed_tokens.weight", (self.vocab_size, hidden)
        for layer in range(self.num_layers):
            at = f"model.layers.{layer}."
            yield at + "input_layernorm.weight", (hidden,)
            yield at + "post_attention_layernorm.weight", (hidden,)
            yield from self._attention_shapes(at + "self_attn.")
            if not self._is_moe(layer):
                yield from self._mlp_shapes(at + "mlp.", self.intermediate_size)
                continue
            yield at + "mlp.gate.weight", (self.num_experts, hidden)
            for expert in range(self.num_experts):
                yield from self._mlp_shapes(f"{at}mlp.experts.{expert}.", self.moe_intermediate_size)
            if self.num_shared_experts:
                yield from self._mlp_shapes(
                    at + "mlp.shared_experts.", self.moe_intermediate_size * self.num_shared_experts
                )
        yield "model.norm.weight", (hidden,)
        if not self.tie_word_embeddings:
            yield "lm_head.weight", (self.vocab_size, hidden)

    def _mlp_shapes(self, at: str, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield at + "gate_proj.weight", (size, self.hidden_size)
        yield at + "up_proj.weight", (size, self.hidden_size)
        yield at + "down_proj.weight", (self.hidden_size, size)

    def _attention_shapes(self, at: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden, heads = self.hidden_size, self.num_heads
        for name, count in (("q", heads), ("k", self.num_kv_heads), ("v", self.num_kv_heads)):
            yield at + f"{name}_proj.weight", (count * self.head_dim, hidden)
            if self.attention_bias:
                yield at + f"{name}_proj.bias", (count * self.head_dim,)
        yield at + "o_proj.weight", (hidden, heads * self.head_dim)
        if self.qk_norm:
            yield at + "q_norm.weight", (self.head_dim,)
            yield at + "k_norm.weight", (self.head_dim,)

    def _is_moe(self, layer: int) -> bool:
        return bool(self.num_experts) and layer >= self.first_dense_layers

    def _layer(self, at: str, layer: int, specs: dict[str, TensorSpec], tp: Slice, ep: Slice) -> Iterator[Parameter]:
        for name in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            yield replicated(at + name, specs[at + name])
        yield from self._attention(at + "self_attn.", specs, tp)
        if not self._is_moe(layer):
            yield from _mlp(at + "mlp.", specs, tp)
            return
        yield replicated(at + "mlp.gate.weight", specs[at + "mlp.gate.weight"])
        weights = [
            [specs[f"{at}mlp.experts.{expert}.{name}_proj.weight"] for name in ("gate", "up", "down")]
            for expert in range(self.num_experts)
        ]
        inner = tp if ep.size == 1 else WHOLE
        yield experts(at + "mlp.experts.w13_weight", [w[:2] for w in weights], dim=0, tp=inner, ep=ep)
        yield experts(at + "mlp.experts.w2_weight", [w[2:] for w in weights], dim=1, tp=inner, ep=ep)
        if self.num_shared_experts:
            yield from _mlp(at + "mlp.shared_experts.", specs, tp)

    def _attention(self, at: str, specs: dict[str, TensorSpec], tp: Slice) -> Iterator[Parameter]:
        for kind in ("weight", "bias") if self.attention_bias else ("weight",):
            q, k, v = (specs[f"{at}{name}_proj.{kind}"] for name in "qkv")
            name = f"{at}qkv_proj.{kind}"
            yield qkv(name, q, k, v, heads=self.num_heads, kv_heads=self.num_kv_heads, tp=tp)
        for name in ("q_norm.weight", "k_norm.weight") if self.qk_norm else ():
            yield replicated(at + name, specs[at + name])
        yield sharded(at + "o_proj.weight", specs[at + "o_proj.weight"], 1, tp)


@lru_cache(maxsize=4)
def _specs(model: Model) -> dict[str, TensorSpec]:
    return {name: TensorSpec(name=name, shape=shape, dtype=model.dtype) for name, shape in model.shapes()}


def _mlp(at: str, specs: dict[str, TensorSpec], tp: Slice) -> Iterator[Parameter]:
    both = [specs[at + "gate_proj.weight"], specs[at + "up_proj.weight"]]
    yield fused(at + "gate_up_proj.weight", both, 0, tp)
    yield sharded(at + "down_proj.weight", specs[at + "down_proj.weight"], 1, tp)


LLAMA_8B = Model(
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=14336,
    vocab_size=128256,
)

MODELS = {
    "micro": Model(
        hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, intermediate_size=128, vocab_size=256
    ),
    "small": replace(
        LLAMA_8B,
        hidden_size=1024,
        num_layers=6,
        num_heads=16,
        num_kv_heads=4,
        head_dim=64,
        intermediate_size=4096,
        vocab_size=16384,
    ),
    "llama-8b": LLAMA_8B,
    # 20,000 tensors of a few KiB each, as of many small experts.
    "tiny-tensors": Model(
        hidden_size=64,
        num_layers=52,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=64,
        vocab_size=1024,
        num_experts=128,
        moe_intermediate_size=32,
    ),
}
"""By the name that the bench takes."""

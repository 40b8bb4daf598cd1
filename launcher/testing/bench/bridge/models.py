"""Whose tensors are moved."""

from __future__ import annotations

from launcher.testing.paper.models import Model

MODELS = {
    "micro": Model(
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=128,
        vocab_size=256,
    ),
    "small": Model(
        hidden_size=1024,
        num_layers=6,
        num_heads=16,
        num_kv_heads=4,
        head_dim=64,
        intermediate_size=4096,
        vocab_size=16384,
    ),
    "llama-8b": Model(
        hidden_size=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=14336,
        vocab_size=128256,
    ),
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

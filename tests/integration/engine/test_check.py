"""A checksum proves that values arrived; the check, that they mean the same to a real vLLM as to the trainer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from launcher.bridge import Bridge, BridgeSettings, WeightSource, rotary_halves
from tests.integration.engine.vllm_server import ROOT, serving

PROMPTS = [[5, 9, 3, 7, 4, 2, 11, 7, 6, 8], [1, 6, 3, 8, 8, 9]]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """A vLLM that was started with other weights of the same configuration."""
    folder = tmp_path_factory.mktemp("check")
    make = [sys.executable, "-m", "launcher.trainers.grpo.tiny_model", str(folder / "model"), "--architecture", "llama"]
    subprocess.run(make, cwd=ROOT, check=True, capture_output=True)
    with serving(folder / "model", folder) as (url, token):
        yield url, token, folder / "model"


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Query or key as Meta and torchtitan keep it."""
    size = weight.shape[0] // heads
    return weight.view(heads, 2, size // 2, -1).transpose(1, 2).reshape(weight.shape)


def source_of(model: LlamaForCausalLM, *, permute: bool) -> WeightSource:
    """The model as a trainer with interleaved rotary pairs holds it, described rightly, or with the permutation left
    out."""
    source = WeightSource()
    for name, tensor in model.state_dict().items():
        config = model.config
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads is None:
            source.add(name, tensor)
        else:
            ours = interleaved(tensor, heads)
            source.add(name, ours, maps=rotary_halves(ours.shape, heads) if permute else None)
    return source


def test_a_rotary_permutation_left_out_is_reported_and_a_right_description_is_not(
    engine: tuple[str, str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    url, token, path = engine
    torch.manual_seed(2)
    config = LlamaConfig.from_pretrained(path)
    config.initializer_range = 0.2
    model = LlamaForCausalLM(config).float()
    bridge = Bridge(BridgeSettings(urls=(url,), token=token, timeout_s=120.0))
    try:
        bridge.publish(source_of(model, permute=True), 1)
        right = bridge.check(model, PROMPTS)
        print(right.text)
        assert right.ok and right.tokens == 32
        assert right.differences[0][1] < 1e-3
        assert not caplog.records

        bridge.publish(source_of(model, permute=False), 2)
        wrong = bridge.check(model, PROMPTS)
        print(wrong.text)
        assert not wrong.ok
        assert wrong.text.startswith("HINT: values or their order are not the checkpoint's, as when rotary pairs")
        assert wrong.text in caplog.text
    finally:
        bridge.close()

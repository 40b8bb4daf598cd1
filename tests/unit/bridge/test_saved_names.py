"""What the bridge says that a checkpoint of a transformers model holds is what ``save_pretrained`` writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launcher.bridge.protocol import Manifest
from launcher.bridge.trainer.description import union
from launcher.bridge.trainer.module_state import description, weights
from launcher.bridge.weightmap.names import checkpoint_views
from launcher.testing.models.architectures import ARCHITECTURES
from launcher.testing.models.check import perturb

pytestmark = pytest.mark.slow  # imports transformers, and every case saves a model

CONVERTED = ("mixtral", "qwen3-moe-tied", "phimoe", "jamba", "deepseek-v3", "ernie4.5-moe", "minimax-m2", "lfm2-moe")
TIED = ("llama-tied", "gemma2")


def manifest_of(module: torch.nn.Module) -> Manifest:
    return union([(description(weights(module)), [0])], 1).manifest


@pytest.mark.parametrize("name", [*CONVERTED, *TIED, "gpt-oss", "nemotron-h"])
def test_the_names_and_values_are_those_of_a_checkpoint(tmp_path: Path, name: str) -> None:
    from safetensors.torch import load_file

    module = ARCHITECTURES[name].module(torch.float32)
    perturb(module, 1)
    module.save_pretrained(tmp_path)
    manifest = manifest_of(module)
    views, state = checkpoint_views(manifest), module.state_dict()
    said = {name: tensor for entry in manifest for name, tensor in views(entry.name, state[entry.name])}
    written = load_file(tmp_path / "model.safetensors")
    assert said.keys() == written.keys()
    assert all(said[name].shape == tensor.shape and said[name].equal(tensor) for name, tensor in written.items())


def test_a_layers_experts_are_named_in_one_entry() -> None:
    manifest = manifest_of(ARCHITECTURES["mixtral"].module(torch.float32))
    entry = next(entry for entry in manifest if entry.name == "model.layers.1.mlp.experts.gate_up_proj")
    assert entry.saved is not None
    names = {view.name: (view.count, view.step, view.shape) for view in entry.saved}
    rows = (4, 2 * 256 * 128, (256, 128))
    at = "model.layers.1.block_sparse_moe.experts.*"
    assert names == {f"{at}.w1.weight": rows, f"{at}.w3.weight": rows}


def test_the_names_of_a_model_without_memory_are_the_same() -> None:
    module = ARCHITECTURES["mixtral"].module(torch.float32)
    assert manifest_of(module) == manifest_of(module.to("meta"))


def test_a_module_of_another_kind_keeps_its_names() -> None:
    assert [entry.saved for entry in manifest_of(torch.nn.Linear(2, 3))] == [None, None]

"""A model that is asked how weights go into it stays what it is, and what it derives from weights follows them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from launcher.bridge.vllm.derived import DerivedTensors
from launcher.bridge.vllm.options import MULTIMODAL, missing_packages, refusal, remarks, weights_refusal
from launcher.bridge.vllm.weightmap import build_worker_map, check_filled, writer
from launcher.bridge.weightmap.state import Held, different, reachable, snapshot
from launcher.common.errors import BridgeError
from tests.unit.bridge.test_weightmap_trace import manifest, receive

CONFIG = SimpleNamespace(dtype=torch.float32)


class Head(nn.Linear):
    """Loads as vLLM's models do; ``also`` is what its loader does besides."""

    def __init__(self, also: str = "") -> None:
        super().__init__(3, 4)
        self.also = also
        self.register_buffer("scale", torch.ones(4), persistent=False)
        self.table = {"cache": [torch.zeros(2)]}

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        if self.also == "registers its bias anew":
            self.bias = nn.Parameter(torch.empty(4))
        if self.also == "gives a parameter other memory":
            self.weight.data = torch.empty(4, 3)
        if self.also == "replaces a buffer":
            self.scale = torch.zeros(4)
        if self.also == "replaces an attribute":
            self.table["cache"][0] = torch.ones(2)
        for name, tensor in weights:
            self.get_parameter(name).data.copy_(tensor)


@pytest.mark.parametrize(
    ("also", "replaced"),
    [
        ("registers its bias anew", "bias"),
        ("gives a parameter other memory", "weight"),
        ("replaces a buffer", "scale"),
        ("replaces an attribute", "table.cache.0"),
    ],
)
def test_a_loader_that_does_more_than_fill_is_refused_and_the_model_is_put_back(also: str, replaced: str) -> None:
    model = Head(also)
    held, before = reachable(model), snapshot(model)
    memory = {name: tensor.data_ptr() for name, tensor in held.items()}
    with pytest.raises(BridgeError, match=f"replaces (the storage of )?`{replaced}`"):
        build_worker_map(model, CONFIG, manifest(weight=torch.empty(4, 3), bias=torch.empty(4)))
    now = reachable(model)
    assert all(now[name] is tensor for name, tensor in held.items()) and now.keys() == held.keys()
    assert {name: tensor.data_ptr() for name, tensor in now.items()} == memory
    assert different(before, snapshot(model)) == []


def test_what_a_loader_adds_is_taken_away_again() -> None:
    model = Head()
    held = Held(model)
    model.register_parameter("extra", nn.Parameter(torch.ones(1)))
    assert held.changed() == ["extra"]
    held.put_back()
    assert not hasattr(model, "extra") and held.changed() == []


class Latent(nn.Module):
    """An attention layer that keeps the product of two weights, as a parameter or an attribute."""

    def __init__(self, projection: nn.Linear, *, kind: str) -> None:
        super().__init__()
        self.impl = SimpleNamespace(sinks=None)
        self.kind = kind
        self.__dict__["projection"] = projection  # another module's, as in vLLM
        self.absorbed: Any = None
        self.process_weights_after_loading(torch.float32)

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        product = self.projection.weight.detach().T @ self.projection.weight.detach()
        if self.kind == "a new parameter" or self.absorbed is None:
            self.absorbed = nn.Parameter(product, requires_grad=False) if "parameter" in self.kind else product
        elif self.kind == "a new attribute":
            self.absorbed = product
        elif self.kind == "another value":
            self.absorbed = product + torch.rand(())
        else:
            self.absorbed.data.copy_(product)


class Model(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.projection = nn.Linear(3, 4, bias=False)
        self.attention = Latent(self.projection, kind=kind)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        for name, tensor in weights:
            self.get_parameter(name).data.copy_(tensor)


KINDS = ("a new parameter", "a parameter in place", "a new attribute", "an attribute in place")


@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_from_weights_is_computed_again_in_its_memory(kind: str) -> None:
    model = Model(kind)
    absorbed, place = model.attention.absorbed, model.attention.absorbed.data_ptr()
    tensors = {"projection.weight": torch.randn(4, 3)}
    weight_map = build_worker_map(model, CONFIG, manifest(**tensors))
    assert DerivedTensors(model, torch.float32).names == ["attention.absorbed"]
    write = writer(model, CONFIG, weight_map)
    receive(weight_map, write, tensors)
    write.commit()
    assert model.attention.absorbed is absorbed and absorbed.data_ptr() == place
    assert torch.equal(absorbed.data, tensors["projection.weight"].T @ tensors["projection.weight"])


def test_what_does_not_come_out_as_it_was_is_refused_and_kept() -> None:
    model = Model("another value")
    before = snapshot(model)
    with pytest.raises(BridgeError, match=r"`attention\.absorbed` is not what its own post-processing makes"):
        build_worker_map(model, CONFIG, manifest(**{"projection.weight": torch.empty(4, 3)}))
    assert different(before, snapshot(model)) == []


def test_a_copy_of_a_parameter_that_no_update_would_reach_is_refused() -> None:
    model = Head()
    model.sinks = model.weight.detach().double()
    with pytest.raises(BridgeError, match="keeps a copy of a parameter in `sinks`"):
        build_worker_map(model, CONFIG, manifest(weight=torch.empty(4, 3), bias=torch.empty(4)))


class Padded(nn.Module):
    """An embedding with more rows than the trainer's, and a bias that one rank alone adds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.down = nn.Embedding(6, 2), nn.Linear(2, 2, bias=True)
        self.embed.org_vocab_size = 5  # type: ignore[assignment]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        for name, tensor in weights:
            parameter = self.get_parameter(name).data
            if name == "down.bias" and self.training:
                tensor.zero_()
            parameter[: len(tensor)].copy_(tensor)
            parameter[len(tensor) :].zero_()


@pytest.mark.parametrize("is_first_rank", [True, False])
def test_what_only_a_checkpoints_loader_fills_is_missed_where_none_was_loaded(is_first_rank: bool) -> None:
    model = Padded().train(not is_first_rank)
    tensors = {"embed.weight": torch.empty(5, 2), "down.weight": torch.empty(2, 2), "down.bias": torch.empty(2)}
    weight_map = build_worker_map(model, CONFIG, manifest(**tensors))
    if is_first_rank:
        check_filled(model, weight_map)
    else:
        with pytest.raises(BridgeError, match=r"`down\.bias` is in part filled.*HINT: start it without"):
            check_filled(model, weight_map)


def config(path: str, value: Any) -> Any:
    """vLLM's configuration with one option set."""
    name, _, rest = path.partition(".")
    return SimpleNamespace(**{name: config(rest, value) if rest else value})


@pytest.mark.parametrize(
    ("path", "value", "check", "words"),
    [
        ("parallel_config.data_parallel_size", 2, refusal, "an update would reach one.*HINT: start 2 engines"),
        ("kv_transfer_config.kv_connector", "LMCacheConnectorV1", refusal, "outside of itself.*HINT"),
        ("model_config.quantization", "fp8", weights_refusal, r"is quantised \(fp8.*HINT"),
        ("parallel_config.enable_eplb", True, weights_refusal, "moves experts.*HINT"),
        ("cache_config.calculate_kv_scales", True, weights_refusal, "scales.*HINT"),
    ],
)
def test_an_option_that_an_update_would_not_survive_is_refused(path: str, value: Any, check: Any, words: str) -> None:
    assert re.search(words, check(config(path, value)) or "")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("parallel_config.data_parallel_size", 1),
        ("kv_transfer_config.kv_connector", "OffloadingConnector"),
        ("model_config.quantization", None),
        ("model_config.quantization", "launcher-plain"),
        ("speculative_config.method", "ngram"),
    ],
)
def test_other_options_are_not(path: str, value: Any) -> None:
    found = config(path, value)
    assert refusal(found) is None and weights_refusal(found) is None and remarks(found) == []


def test_a_draft_model_is_reported_as_stale() -> None:
    assert "answers are right" in remarks(config("speculative_config.method", "eagle"))[0]


def test_packages_that_images_need_are_named_before_the_engine_starts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava", "vision_config": {}}', encoding="utf-8")
    missing = [package for package in MULTIMODAL if find_spec(package) is None]
    found = missing_packages(tmp_path)
    assert (found is None) == (not missing)
    assert all(package in (found or "") for package in missing)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    assert missing_packages(tmp_path) is None and missing_packages(tmp_path / "nowhere") is None

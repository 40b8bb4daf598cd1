"""Adapters published into a real vLLM answer as those that it loads from PEFT's directories; its weights stay."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from launcher.bridge.settings import BridgeSettings
from launcher.bridge.trainer.api import Bridge
from launcher.common.errors import TransferError
from launcher.common.keys import api_key
from launcher.inference.versions import HEADER, token_versions
from tests.integration.engine.questions import ask, greedy
from tests.integration.engine.vllm_server import ROOT, serving

RANK = 4
CONFIG = {"r": RANK, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj", "gate_proj"]}
LONG = 100
"""Tokens of a request that runs while versions are published."""

SPANNING_S = 120
"""Longest wait for a request that meets two versions."""

State = dict[str, torch.Tensor]


def adapter(model: Path, seed: int) -> State:
    """Random matrices under PEFT's names, some layers of the model left out."""
    config = AutoConfig.from_pretrained(model)
    hidden, inner = config.hidden_size, config.intermediate_size
    heads, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    sizes = {
        "self_attn.q_proj": (hidden, heads),
        "self_attn.v_proj": (hidden, kv),
        "self_attn.o_proj": (heads, hidden),
        "mlp.down_proj": (inner, hidden),
    }
    found: State = {}
    generator = torch.Generator().manual_seed(seed)
    for layer in range(config.num_hidden_layers):
        here = sizes if layer else {**sizes, "mlp.gate_proj": (hidden, inner)}
        for module, (columns, rows) in here.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            found[f"{name}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator) * 0.2
            found[f"{name}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator) * 0.2
    return found


def save(state: State, directory: Path) -> Path:
    """As PEFT does."""
    directory.mkdir()
    save_file(state, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps({**CONFIG, "peft_type": "LORA"}))
    return directory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapter")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    command = [sys.executable, "-m", "launcher.trainers.grpo.tiny_model", str(folder / "model")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder / "model"


@pytest.fixture(scope="module")
def engine(model: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Serves two adapters from directories, and has room for more."""
    stored = [f"stored-{seed}={save(adapter(model, seed), folder / str(seed))}" for seed in (1, 2)]
    room = ["--max-loras", "3", "--max-lora-rank", "8"]
    with serving(model, folder, ["--enable-lora", *room, "--lora-modules", *stored]) as found:
        yield found


@pytest.fixture(scope="module")
def bridge(engine: tuple[str, str]) -> Iterator[Bridge]:
    """A trainer's, that knows nothing else of the run."""
    url, token = engine
    found = Bridge(BridgeSettings(urls=(url,), token=token, timeout_s=60.0, update="delta"))
    yield found
    found.close()


def said(answers: list[dict[str, Any]]) -> list[Any]:
    """What was answered, without who says so."""
    return [(answer["tokens"], answer["logprobs"]) for answer in answers]


def names(answers: list[dict[str, Any]]) -> set[Any]:
    return {(answer["adapter"], answer["version"]) for answer in answers}


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_an_adapter_that_is_published_answers_as_one_from_a_directory(
    engine: tuple[str, str], model: Path, bridge: Bridge
) -> None:
    url, token = engine
    key = api_key(token)
    weights = said(greedy(url, key))
    stored = {seed: said(greedy(url, key, f"stored-{seed}")) for seed in (1, 2)}
    assert weights != stored[1] != stored[2] != weights
    assert ask(url, "/v1/completions", key, {"model": "tuned", "prompt": [1]})[0] == 404

    bytes_of_all = sum(4 * matrix.numel() for matrix in adapter(model, 1).values())
    report = bridge.publish_adapter("tuned", adapter(model, 1), 1, config=CONFIG)
    assert (report.density, report.replicas) == (None, 1)
    assert bytes_of_all <= report.bytes <= 1.1 * bytes_of_all
    answers = greedy(url, key, "tuned")
    assert said(answers) == stored[1]
    assert names(answers) == {("tuned", "1")}

    assert bridge.publish_adapter("tuned", adapter(model, 2), 2, config=CONFIG).density == 1.0
    answers = greedy(url, key, "tuned")
    assert said(answers) == stored[2]
    assert names(answers) == {("tuned", "2")}

    # The way back, and what has changed since alone: nothing.
    bridge.publish_adapter("tuned", adapter(model, 1), 3, config=CONFIG)
    assert said(greedy(url, key, "tuned")) == stored[1]
    report = bridge.publish_adapter("tuned", adapter(model, 1), 4, config=CONFIG)
    assert (report.density, report.bytes < bytes_of_all / 100) == (0.0, True)
    assert said(greedy(url, key, "tuned")) == stored[1]

    # Another beside it, and what was there before.
    bridge.publish_adapter("second", adapter(model, 2), 1, config=CONFIG)
    assert said(greedy(url, key, "second")) == stored[2]
    assert names(greedy(url, key, "second")) == {("second", "1")}
    assert said(greedy(url, key, "tuned")) == stored[1]
    assert said(greedy(url, key, "stored-2")) == stored[2]
    answers = greedy(url, key)
    assert said(answers) == weights
    assert names(answers) == {(None, None)}
    (info,) = bridge.info()
    assert (info.version, info.state, info.adapters) == (None, "serving", {"tuned": 4, "second": 1})


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_an_adapter_that_cannot_be_used_is_refused_and_the_one_before_goes_on(
    engine: tuple[str, str], model: Path, bridge: Bridge
) -> None:
    url, token = engine
    key = api_key(token)
    good = adapter(model, 1)
    bridge.publish_adapter("refused", good, 1, config=CONFIG)
    before = greedy(url, key, "refused")

    elsewhere = {name.replace("layers.1.mlp.down_proj", "layers.7.mlp.down_proj"): t for name, t in good.items()}
    half = {
        name: t for name, t in good.items() if name != "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    }
    for state, config, reason in (
        (elsewhere, CONFIG, "layers.7.mlp.down_proj"),
        (half, CONFIG, "one is missing"),
        (good, {**CONFIG, "r": 16}, "rank 16 is greater than max_lora_rank 8"),
    ):
        with pytest.raises(TransferError, match=reason):
            bridge.publish_adapter("refused", state, 2, config=config)
        assert greedy(url, key, "refused") == before
    with pytest.raises(TransferError, match="version 1 is not newer than 1"):
        bridge.publish_adapter("refused", good, 1, config=CONFIG)
    with pytest.raises(TransferError, match="another model of this engine is called 'stored-1'"):
        bridge.publish_adapter("stored-1", good, 1, config=CONFIG)
    bridge.publish_adapter("refused", good, 2, config=CONFIG)
    assert names(greedy(url, key, "refused")) == {("refused", "2")}
    with pytest.raises(TransferError, match="there is no room beside 3 adapters"):
        for name in ("tuned", "second", "third"):
            bridge.publish_adapter(name, good, 50, config=CONFIG)
    assert names(greedy(url, key, "refused")) == {("refused", "2")}
    assert bridge.info()[0].state == "serving"


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_request_that_runs_meanwhile_says_which_version_made_which_token(
    engine: tuple[str, str], model: Path, bridge: Bridge
) -> None:
    url, token = engine
    key = api_key(token)
    states = [adapter(model, 1), adapter(model, 2)]
    version = 100
    bridge.publish_adapter("tuned", states[0], version, config=CONFIG)

    def long(name: str) -> tuple[int, dict[str, str]]:
        body = {"model": name, "prompt": [3, 5, 7], "max_tokens": LONG, "temperature": 1.0, "ignore_eos": True, "n": 4}
        status, _answer, headers = ask(url, "/v1/completions", key, body)
        return status, headers

    _, models, _ = ask(url, "/v1/models", key)
    names = ("tuned", models["data"][0]["id"])

    def until_two_versions() -> set[int | None]:
        """Asks again and again; under a load a version can take longer than an answer."""
        seen: set[int | None] = set()
        deadline = time.monotonic() + SPANNING_S
        while len(seen) < 2 and time.monotonic() < deadline:
            with ThreadPoolExecutor() as pool:
                (status, headers), (other_status, other_headers) = pool.map(long, names)
            assert (status, other_status) == (200, 200)
            assert HEADER not in other_headers, "the weights had no new version"
            seen = set(token_versions(headers[HEADER], LONG))
        return seen

    with ThreadPoolExecutor() as asking:
        asked = asking.submit(until_two_versions)
        while not asked.done():
            version += 1
            bridge.publish_adapter("tuned", states[version % 2], version, config=CONFIG)
    seen = asked.result()
    assert len(seen) > 1
    assert all(one is not None and one <= version for one in seen)

"""What is told of an adapter, and an engine that has versions of adapters beside those of its weights."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from launcher.bridge.engine.state_machine import Refused, UpdateStateMachine
from launcher.bridge.protocol import FAILED, Bind, Commit, GetInfo
from launcher.bridge.trainer.adapter import adapter_of, adapter_weights
from launcher.bridge.vllm.compat import VllmEngine
from launcher.common.errors import BridgeError
from tests.unit.bridge.test_bridge_engine import NOTHING, Vllm, requests

NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


class Wrapped(nn.Module):
    """A linear layer as PEFT wraps it, with two adapters."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(4, 4)
        for half in ("lora_A", "lora_B"):
            self.add_module(half, nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in ("default", "other")}))


def test_the_matrices_of_a_model_have_the_names_of_pefts_files() -> None:
    model = nn.Module()
    here = model
    for name in ("base_model", "model", "model", "layers", "0", "self_attn"):
        here.add_module(name, nn.Module())
        here = here.get_submodule(name)
    here.add_module("q_proj", Wrapped())
    for peft_name in ("default", "other"):
        named = {weight.name: weight.parts[0].tensor for weight in adapter_weights(model, peft_name)}
        assert named.keys() == {NAME.format("A"), NAME.format("B")}
        assert named[NAME.format("A")] is here.get_submodule(f"q_proj.lora_A.{peft_name}").weight


def test_matrices_by_name_get_pefts_prefix_and_anything_else_is_left_out() -> None:
    matrix = torch.zeros(2, 2)
    short = NAME.removeprefix("base_model.model.")
    held = adapter_weights({short.format("B"): matrix, NAME.format("A"): matrix, "model.norm.weight": matrix})
    assert [weight.name for weight in held] == [NAME.format("A"), NAME.format("B")]
    with pytest.raises(BridgeError, match=r"None of 1 tensors is an adapter's"):
        adapter_weights({"model.norm.weight": matrix})


def test_a_description_is_plain_data_whatever_the_order_of_its_sets() -> None:
    one = adapter_of("a", {"r": 8, "lora_alpha": 16, "target_modules": {"q_proj", "v_proj"}})
    config = SimpleNamespace(to_dict=lambda: {"lora_alpha": 16, "r": 8, "target_modules": {"v_proj", "q_proj"}})
    assert adapter_of("a", config) == one
    assert one.config["target_modules"] == ["q_proj", "v_proj"]
    with pytest.raises(BridgeError, match="no `lora_alpha`"):
        adapter_of("a", {"r": 8})


class Models:
    """vLLM's list of models."""

    def __init__(self) -> None:
        self.base_model_paths = [SimpleNamespace(name="base")]
        self.lora_requests: dict[str, Any] = {}
        self._ids = 6
        self.lora_id_counter = SimpleNamespace(inc=self._inc)

    def _inc(self, by: int) -> int:
        self._ids += by
        return self._ids


async def publish(
    engine: UpdateStateMachine,
    vllm: Vllm,
    models: Models,
    version: int,
    *,
    adapter: str | None = None,
    releases: bool = True,
) -> None:
    made = requests(version, adapter=adapter)
    commit = Commit(version=version, adapter=adapter, releases=releases)
    for request in (made["prepare"], made["vote"], commit):
        await engine.handle(VllmEngine(vllm, models), request)


def test_an_adapter_has_versions_of_its_own_and_is_offered_once_it_is_committed() -> None:
    async def go() -> None:
        engine, vllm, models = UpdateStateMachine(), Vllm(), Models()
        await publish(engine, vllm, models, 5)
        await engine.handle(VllmEngine(vllm, models), Bind(trainer=NOTHING, adapter="tuned"))
        assert models.lora_requests == {}
        await publish(engine, vllm, models, 1, adapter="tuned")
        assert vllm.calls.index("stage") < len(vllm.calls) - 1 - vllm.calls[::-1].index("pause")
        assert models.lora_requests["tuned"].lora_int_id == 7
        assert (engine.version, engine.adapters["tuned"].version) == (5, 1)
        with pytest.raises(Refused, match="version 1 is not newer than 1"):
            await publish(engine, vllm, models, 1, adapter="tuned")
        with pytest.raises(Refused, match="another model of this engine is called 'base'"):
            await publish(engine, vllm, models, 1, adapter="base")
        info = await engine.handle(VllmEngine(vllm), GetInfo())
        assert (info.version, info.adapters) == (5, {"tuned": 1})

    asyncio.run(go())


class FailsOnce(Vllm):
    """Its worker fails while it writes the weights."""

    fails = True

    async def collective_rpc(self, name: str, args: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
        if args[0] == "commit" and args[1]["adapter"] is None and self.fails:
            self.fails = False
            return [{FAILED: "no"}]
        return await super().collective_rpc(name, args)


def test_an_adapter_does_not_end_the_quarantine_of_weights_that_may_be_a_mix() -> None:
    async def go() -> None:
        engine, vllm, models = UpdateStateMachine(), FailsOnce(), Models()
        with pytest.raises(Refused, match="no"):
            await publish(engine, vllm, models, 1)
        await publish(engine, vllm, models, 1, adapter="tuned")
        assert engine.state == "quarantined"
        assert "resume" not in vllm.calls
        await publish(engine, vllm, models, 2)
        assert engine.state == "serving"
        assert vllm.calls.count("resume") == 1

    asyncio.run(go())


def test_a_restarted_engine_that_waits_for_weights_is_not_released_by_an_adapter_unless_the_trainer_says_so() -> None:
    async def go() -> None:
        engine, vllm, models = UpdateStateMachine(awaits_weights=True), Vllm(), Models()
        await publish(engine, vllm, models, 1, adapter="tuned", releases=False)
        assert engine.awaits_weights
        await publish(engine, vllm, models, 2, adapter="tuned", releases=True)
        assert not engine.awaits_weights

    asyncio.run(go())

"""Names that do not fit: the hint comes first, lists are short, wrappers are recognised, near names are shown."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from launcher.bridge.plan import Location, Placement
from launcher.bridge.plan.sharding import Sharding
from launcher.bridge.protocol import TensorEntry, TrainerSpec
from launcher.bridge.trainer.module_state import description, weights
from launcher.bridge.trainer.refusal import explained, few
from launcher.common.errors import BridgeError

NAMES = ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.weight")


def spec(prefix: str = "", ranks: tuple[int, ...] = (0, 1)) -> TrainerSpec:
    names = [prefix + name for name in NAMES]
    placement = Placement(shardings=(Sharding.parse((len(ranks),), ("R",), ranks),))
    return TrainerSpec.of(
        manifest=tuple(TensorEntry(name=name, shape=(4, 4), dtype="float32") for name in names),
        placements=dict.fromkeys(names, placement),
        locations=(Location(node=0, gpu=0), Location(node=0, gpu=1)),
        round_bytes=1,
    )


MISSING = (
    "The engine's `model.norm.weight` (4,): no element is written by a tensor of the trainer."
    " HINT: publish all weights of the model, under the names of its checkpoint."
)


@pytest.mark.parametrize(
    ("prefix", "hint"),
    [
        ("module.", "HINT: every name begins with `module.`, which the engine's do not; DistributedDataParallel"),
        ("base_model.model.", "HINT: every name begins with `base_model.model.`, which the engine's do not; PEFT"),
        ("actor.", "HINT: every name begins with `actor.`, which the engine's do not."),
    ],
)
def test_a_prefix_that_keeps_names_from_fitting_is_the_hint(prefix: str, hint: str) -> None:
    assert explained(MISSING, spec(prefix)).startswith(hint)


def test_a_prefix_that_the_trainer_lacks_is_the_hint() -> None:
    reason = "The engine's `language_model.model.norm.weight` (4,): no element is written."
    assert explained(reason, spec()).startswith("HINT: the engine's names begin with `language_model.`")


def test_the_engines_hint_comes_first_and_near_names_last() -> None:
    text = explained(MISSING.replace("norm", "norms"), spec())
    assert text.startswith("HINT: publish all weights of the model, under the names of its checkpoint. The engine's")
    assert "Nearest to `model.norms.weight`: `model.norm.weight`" in text


def test_an_engines_long_list_of_names_is_short_and_in_order() -> None:
    flood = "no parameter named 'x' in M. They are: {" + ", ".join(f"'b.{i}'" for i in range(9, 0, -1)) + "}"
    assert "They are: `b.1`, `b.2`, `b.3` and 6 more" in explained(flood, spec())
    assert few(["b", "a"]) == "`a`, `b`"


def test_a_tensor_that_some_ranks_hold_is_told_with_them() -> None:
    text = explained("used by no worker, first: `model.norm.weight`.", spec(ranks=(1,)))
    assert "`model.norm.weight` is held by trainer rank 1 of 2 only." in text


def test_placeholders_and_adapters_are_recognised_before_anything_is_sent() -> None:
    module = nn.Linear(2, 2)
    module.weight = nn.Parameter(torch.empty(0))
    with pytest.raises(BridgeError, match=r"^HINT: .*zero3_source.*`weight` \(0,\) is a placeholder"):
        description(weights(module))
    wrapped = nn.ModuleDict({"q_proj": nn.ModuleDict({"base_layer": nn.Linear(2, 2)})})
    with pytest.raises(BridgeError, match=r"^HINT: .*peft_source.*`q_proj.base_layer.bias`"):
        description(weights(wrapped))


def test_patterns_leave_weights_out_and_the_owner_of_a_tied_one_changes() -> None:
    module = nn.ModuleDict(
        {"a": nn.Linear(2, 2, bias=False), "v_head": nn.Linear(2, 1), "z": nn.Linear(2, 2, bias=False)}
    )
    module["z"].weight = module["a"].weight
    assert [weight.name for weight in weights(module, ["v_head.*"])] == ["a.weight", "z.weight"]
    assert [(w.name, w.alias_of) for w in weights(module, ["v_head.*", "a.*"])] == [("z.weight", None)]

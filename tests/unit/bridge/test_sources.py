"""Sources for other libraries: each gives the tensors of the checkpoint, from parts as those libraries keep them."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from launcher.bridge.plan import Box
from launcher.bridge.plan.boxes import tiling_problem
from launcher.bridge.sources.megatron import MegatronPlace, megatron_source
from launcher.bridge.sources.peft import peft_source
from launcher.bridge.sources.zero3 import zero3_source
from launcher.bridge.trainer.module_state import cuttings, description, shards
from launcher.bridge.trainer.source import WeightSource
from launcher.common.errors import BridgeError

State = dict[str, torch.Tensor]
HEADS, GROUPS, SIZE, HIDDEN, INNER, VOCAB, PADDED = 8, 4, 4, 10, 12, 13, 16


def put_together(sources: Sequence[WeightSource]) -> State:
    """The whole tensors that ranks hold together; each element must be held by one."""
    found: State = {}
    boxes: dict[str, list[Box]] = {}
    for rank, source in enumerate(sources):
        held = source.weights()
        views = shards(held, cuttings(description(held), rank), {weight.name for weight in held})
        for weight in held:
            whole = found.setdefault(weight.name, torch.full(weight.shape, float("nan")))
            for box, _ in views[weight.name].pieces:
                whole[box.slices()] = views[weight.name].at(box)
                boxes.setdefault(weight.name, []).append(box)
    for name, whole in found.items():
        # What every rank of a stage has whole is there more than once.
        distinct = set(boxes[name])
        assert tiling_problem(Box.full(whole.shape), distinct) is None, name
    return found


def noise(name: str, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def checkpoint(layers: int) -> State:
    found = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "lm_head.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for i in range(layers):
        head = f"model.layers.{i}"
        found |= {f"{head}.{norm}.weight": (HIDDEN,) for norm in ("input_layernorm", "post_attention_layernorm")}
        found |= {f"{head}.self_attn.{x}_proj.weight": (GROUPS * SIZE, HIDDEN) for x in "kv"}
        found |= {f"{head}.self_attn.{x}_proj.bias": (GROUPS * SIZE,) for x in "kv"}
        found |= {
            f"{head}.self_attn.q_proj.weight": (HEADS * SIZE, HIDDEN),
            f"{head}.self_attn.q_proj.bias": (HEADS * SIZE,),
            f"{head}.self_attn.o_proj.weight": (HIDDEN, HEADS * SIZE),
            f"{head}.mlp.gate_proj.weight": (INNER, HIDDEN),
            f"{head}.mlp.up_proj.weight": (INNER, HIDDEN),
            f"{head}.mlp.down_proj.weight": (HIDDEN, INNER),
        }
    return {name: noise(name, *shape) for name, shape in found.items()}


def module_of(tensors: State) -> nn.Module:
    """A module whose parameters have these names."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(tensor.clone()))
    return root


def megatron_rank(whole: State, tp: int, tp_size: int, stage: int, layers: int) -> nn.Module:
    """A rank's parameters, as Megatron-Core 0.16 names, fuses and pads them (two stages)."""

    def qkv(kind: str, head: str) -> torch.Tensor:
        q, k, v = (whole[f"{head}.self_attn.{x}_proj.{kind}"] for x in "qkv")
        grouped = [x.view(GROUPS, -1, *x.shape[1:]) for x in (q, k, v)]
        mine = torch.cat(grouped, 1).chunk(tp_size)[tp]
        return mine.reshape(-1, *q.shape[1:])

    found: State = {}
    for local in range(layers // 2):
        head, ours = f"model.layers.{local + stage * layers // 2}", f"decoder.layers.{local}"
        gate, up = (whole[f"{head}.mlp.{x}_proj.weight"].chunk(tp_size)[tp] for x in ("gate", "up"))
        found |= {
            f"{ours}.input_layernorm.weight": whole[f"{head}.input_layernorm.weight"],
            f"{ours}.self_attention.linear_qkv.weight": qkv("weight", head),
            f"{ours}.self_attention.linear_qkv.bias": qkv("bias", head),
            f"{ours}.self_attention.linear_proj.weight": whole[f"{head}.self_attn.o_proj.weight"].chunk(tp_size, 1)[tp],
            f"{ours}.mlp.linear_fc1.layer_norm_weight": whole[f"{head}.post_attention_layernorm.weight"],
            f"{ours}.mlp.linear_fc1.weight": torch.cat([gate, up]),
            f"{ours}.mlp.linear_fc2.weight": whole[f"{head}.mlp.down_proj.weight"].chunk(tp_size, 1)[tp],
        }
    name, ours = [("embed_tokens", "embedding.word_embeddings"), ("lm_head", "output_layer")][stage]
    vocabulary = whole["model.embed_tokens.weight" if stage == 0 else f"{name}.weight"]
    found[f"{ours}.weight"] = nn.functional.pad(vocabulary, (0, 0, 0, PADDED - VOCAB)).chunk(tp_size)[tp]
    if stage == 1:
        found["decoder.final_layernorm.weight"] = whole["model.norm.weight"]
    return module_of(found)


@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_megatrons_stages_and_shards_are_the_checkpoint(tp_size: int) -> None:
    whole, layers = checkpoint(4), 4
    sources = [
        megatron_source(
            megatron_rank(whole, tp, tp_size, stage, layers),
            MegatronPlace(
                heads=HEADS, groups=GROUPS, vocabulary=VOCAB, tp_rank=tp, tp_size=tp_size, first_layer=stage * 2
            ),
        )
        for stage in range(2)
        for tp in range(tp_size)
    ]
    found = put_together(sources)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_megatrons_experts_have_their_numbers_in_the_model() -> None:
    experts = {
        f"model.layers.0.mlp.experts.{e}.{x}_proj.weight": noise(f"{e}{x}", INNER, HIDDEN)
        for e in range(4)
        for x in ("gate", "up")
    }
    sources = []
    for rank in range(2):
        of = [
            [experts[f"model.layers.0.mlp.experts.{2 * rank + e}.{x}_proj.weight"] for x in ("gate", "up")]
            for e in range(2)
        ]
        names = (
            "decoder.layers.0.mlp.experts.local_experts.{}.linear_fc1.weight",
            "decoder.layers.0.mlp.experts.linear_fc1.weight{}",
        )
        module = module_of({names[rank].format(e): torch.cat(pair) for e, pair in enumerate(of)})
        place = MegatronPlace(heads=HEADS, groups=GROUPS, vocabulary=VOCAB, first_expert=2 * rank)
        sources.append(megatron_source(module, place))
    found = put_together(sources)
    assert found.keys() == experts.keys()
    assert all(torch.equal(found[name], experts[name]) for name in experts)


def test_what_megatron_has_and_no_checkpoint_is_named() -> None:
    place = MegatronPlace(heads=HEADS, groups=GROUPS, vocabulary=VOCAB)
    with pytest.raises(BridgeError, match=r"`decoder.layers.0.surprise.weight` of Megatron-Core has no counterpart"):
        megatron_source(module_of({"decoder.layers.0.surprise.weight": torch.ones(1)}), place)


def test_a_partition_that_zero_3_does_not_share_over_all_ranks_is_refused() -> None:
    module = module_of({"w": torch.empty(0)})
    module.w.ds_numel, module.w.ds_shape, module.w.ds_tensor = 12, (3, 4), torch.arange(6.0)
    module.w.ds_tensor.ds_numel = 6
    with pytest.raises(BridgeError, match=r"`w`: this rank has 6 of 12 elements, which 1 ranks share"):
        zero3_source(module)
    module.w.ds_tensor = torch.arange(16.0)
    module.w.ds_tensor.ds_numel = 16
    assert torch.equal(put_together([zero3_source(module)])["w"], torch.arange(12.0).view(3, 4))


@pytest.mark.slow
@pytest.mark.parametrize("merged", [False, True])
def test_pefts_model_is_published_as_if_it_was_merged(merged: bool) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    torch.manual_seed(0)
    base = LlamaForCausalLM(config)
    lora = LoraConfig(
        r=3, lora_alpha=5, target_modules=["q_proj", "down_proj", "embed_tokens"], modules_to_save=["lm_head"]
    )
    model = get_peft_model(base, lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(noise(name, *parameter.shape))
    expected = copy.deepcopy(model).merge_and_unload().state_dict()
    if merged:
        model.merge_adapter()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    found = put_together([peft_source(model)])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())

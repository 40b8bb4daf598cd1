"""A plan, executed on real tensors, leaves every engine rank with exactly its slice of the model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.bridge.codec.pack import pack, unpack
from launcher.bridge.plan import (
    Box,
    Engine,
    Location,
    Plan,
    Receiver,
    Sharding,
    TensorSpec,
    place,
    reshard,
    verify_plan,
)
from launcher.bridge.plan.requirements import Parameter, Region
from launcher.bridge.plan.sharding import fsdp, fsdp_tp, hsdp, replicated, tensor_parallel
from launcher.common.errors import BridgeError
from launcher.testing.bench.engine_layout import WHOLE, Slice, dense_chunk, local_experts, stacked_experts
from launcher.testing.bench.models import Model
from tests.integration.bridge.transfer_case import held

pytestmark = pytest.mark.slow

State = dict[str, torch.Tensor]


def weights(specs: tuple[TensorSpec, ...]) -> State:
    """Random bit patterns: any element may be NaN or negative zero, and must arrive as it is."""
    state = {}
    for spec in specs:
        dtype = getattr(torch, spec.dtype)
        noise = torch.randint(0, 256, (torch.Size(spec.shape).numel() * dtype.itemsize,), dtype=torch.uint8)
        state[spec.name] = noise.view(dtype).view(spec.shape)
    return state


def execute(plan: Plan, state: State) -> dict[Receiver, State]:
    """All ranks in one process; every receiver's storage begins as zeros."""
    storage = {
        Receiver(engine=e, rank=r): {p.name: torch.zeros(p.shape, dtype=getattr(torch, p.dtype)) for p in parameters}
        for e, engine in enumerate(plan.engines)
        for r, parameters in enumerate(engine.parameters)
    }
    per_pair: set[tuple[object, ...]] = set()
    for rank in range(len(plan.trainers)):
        shards = held(plan, state, rank)
        for message in plan.outgoing(rank):
            assert (message.round, message.sender, message.receiver) not in per_pair, "one message per pair and round"
            per_pair.add((message.round, message.sender, message.receiver))
            buffer = torch.zeros(message.nbytes, dtype=torch.uint8)
            pack(message, shards, buffer)
            unpack(message, buffer, storage[message.receiver])
    for receiver in storage:
        messages = list(plan.incoming(receiver))
        for number in {m.round for m in messages}:
            assert sum(m.nbytes for m in messages if m.round == number) <= plan.round_bytes
    return storage


def load(model: Model, state: State, tp: Slice, ep: Slice) -> State:
    """What vLLM's loader leaves on a rank, written independently of the planner: chunks, stacks, concatenations."""

    def cut(name: str, dim: int, part: Slice = tp) -> torch.Tensor:
        return state[name].chunk(part.size, dim)[part.rank]

    def mlp(at: str, inner: Slice = tp) -> tuple[torch.Tensor, torch.Tensor]:
        both = torch.cat([cut(f"{at}{name}_proj.weight", 0, inner) for name in ("gate", "up")])
        return both, cut(f"{at}down_proj.weight", 1, inner)

    rows = -(-model.vocab_size // (64 * tp.size)) * 64
    found = {}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        source = state["model.embed_tokens.weight" if model.tie_word_embeddings else name]
        padded = torch.zeros(rows * tp.size, model.hidden_size, dtype=source.dtype)
        padded[: model.vocab_size] = source
        found[name] = padded[tp.rank * rows : (tp.rank + 1) * rows]
    for name, tensor in state.items():
        if "norm" in name or name.endswith("mlp.gate.weight"):
            found[name] = tensor
    for layer in range(model.num_layers):
        at = f"model.layers.{layer}."
        kv = (
            Slice(rank=tp.rank * model.num_kv_heads // tp.size, size=model.num_kv_heads)
            if tp.size > model.num_kv_heads
            else tp
        )
        for kind in ("weight", "bias") if model.attention_bias else ("weight",):
            parts = [cut(f"{at}self_attn.{x}_proj.{kind}", 0, tp if x == "q" else kv) for x in "qkv"]
            found[f"{at}self_attn.qkv_proj.{kind}"] = torch.cat(parts)
        found[at + "self_attn.o_proj.weight"] = cut(at + "self_attn.o_proj.weight", 1)
        if not model.num_experts:
            found[at + "mlp.gate_up_proj.weight"], found[at + "mlp.down_proj.weight"] = mlp(at + "mlp.")
            continue
        mine = [
            mlp(f"{at}mlp.experts.{i}.", WHOLE if ep.size > 1 else tp) for i in local_experts(model.num_experts, ep)
        ]
        found[at + "mlp.experts.w13_weight"] = torch.stack([w[0] for w in mine])
        found[at + "mlp.experts.w2_weight"] = torch.stack([w[1] for w in mine])
    return found


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))
    )


models = st.builds(
    Model,
    hidden_size=st.sampled_from([4, 12, 20]),
    num_layers=st.integers(1, 2),
    num_heads=st.sampled_from([4, 8]),
    num_kv_heads=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([1, 2, 3]),
    intermediate_size=st.sampled_from([4, 8, 28]),
    vocab_size=st.integers(3, 300),
    tie_word_embeddings=st.booleans(),
    qk_norm=st.booleans(),
    attention_bias=st.booleans(),
    num_experts=st.sampled_from([0, 0, 4, 5]),
    moe_intermediate_size=st.sampled_from([4, 12]),
    dtype=st.sampled_from(["bfloat16", "float32", "float8_e4m3fn"]),
)


@st.composite
def shardings(draw: st.DrawFn) -> list[tuple[str, Sharding]]:
    """Placements of 1 to 4 trainer ranks, differing from tensor to tensor as tensor parallelism has it."""
    kind = draw(st.sampled_from(["plain", "fsdp", "hsdp", "tp", "fsdp+tp"]))
    size = draw(st.integers(1, 4))
    if kind == "plain":
        return [(".*", replicated(size))]
    if kind == "fsdp":
        return [(".*", fsdp(size))]
    if kind == "hsdp":
        return [(".*", hsdp(2, draw(st.integers(1, 2))))]
    outer, inner = draw(st.sampled_from([(1, 2), (1, 3), (2, 2), (1, 4)]))
    make = tensor_parallel if kind == "tp" else fsdp_tp
    columns = r".*(q|k|v|gate|up)_proj\..*|.*embed.*|lm_head.*"
    return [
        (columns, make(outer, inner, 0)),
        (r".*(o|down)_proj\.weight", make(outer, inner, 1)),
        (".*", make(outer, inner, None)),
    ]


@st.composite
def replicas(draw: st.DrawFn, size: int) -> list[tuple[Location, ...]]:
    """Where the ranks of 1 to 4 replicas run: beside the trainer or elsewhere, one or two replicas on a node."""
    first, per_node = draw(st.sampled_from([0, 1, 9])), draw(st.sampled_from([1, 2]))
    return [
        tuple(Location(node=first + i // per_node, gpu=i % per_node * size + r) for r in range(size))
        for i in range(draw(st.integers(1, 4)))
    ]


@settings(max_examples=150, deadline=None)
@given(models, shardings(), st.sampled_from([1, 2, 4]), st.booleans(), st.data())
def test_engines_end_with_slices_of_the_model(
    model: Model, rules: list[tuple[str, Sharding]], size: int, expert_parallel: bool, data: st.DataObject
) -> None:
    ranks = [Slice(rank=r, size=size) for r in range(size)]
    slices = [(tp, tp if expert_parallel and model.num_experts else WHOLE) for tp in ranks]
    parameters = tuple(model.parameters(tp, ep) for tp, ep in slices)
    engines = [Engine(parameters=parameters, locations=places) for places in data.draw(replicas(size))]
    trainers = [Location(node=r // 2, gpu=r % 2) for r in range(rules[0][1].world_size)]
    round_bytes = data.draw(st.sampled_from([512, 5000, 1 << 20]))
    plan = reshard(place(model.tensors(), rules), engines, trainers, round_bytes=round_bytes)
    verify_plan(plan)
    state = weights(model.tensors())
    for receiver, storage in execute(plan, state).items():
        expected = load(model, state, *slices[receiver.rank])
        assert storage.keys() == expected.keys()
        for name, tensor in storage.items():
            assert same_bytes(tensor, expected[name]), (receiver, name)


def one(parameter: Parameter, specs: list[TensorSpec], sharding: Sharding, wires: dict[str, str] | None = None) -> Plan:
    engine = Engine(parameters=((parameter,),), locations=(Location(node=1, gpu=0),))
    trainers = [Location(node=0, gpu=r) for r in range(sharding.world_size)]
    plan = reshard(place(specs, [(".*", sharding)]), [engine], trainers, wires=wires)
    verify_plan(plan)
    return plan


ONE = Receiver(engine=0, rank=0)


@pytest.mark.parametrize("sharding", [fsdp(3), hsdp(2, 2), replicated(2)])
@pytest.mark.seed("D18")
def test_masters_in_float32_travel_and_arrive_as_bfloat16(sharding: Sharding) -> None:
    spec = TensorSpec(name="w", shape=(7, 5), dtype="float32")
    plan = one(dense_chunk("w", spec, 0, WHOLE, dtype="bfloat16"), [spec], sharding)
    state = {"w": torch.randn(7, 5)}
    assert sum(s.nbytes for m in plan.incoming(ONE) for s in m.segments) == 7 * 5 * 2
    assert torch.equal(execute(plan, state)[ONE]["w"], state["w"].bfloat16())


def test_bfloat16_arrives_in_a_float32_parameter_without_costing_more() -> None:
    spec = TensorSpec(name="w", shape=(7, 5))
    parameter = dense_chunk("w", spec, 0, WHOLE, dtype="float32")
    state = {"w": torch.randn(7, 5).bfloat16()}
    plan = one(parameter, [spec], fsdp(2))
    assert {s.wire for m in plan.incoming(ONE) for s in m.segments} == {"bfloat16"}
    assert torch.equal(execute(plan, state)[ONE]["w"], state["w"].float())
    wide = one(parameter, [spec], fsdp(2), wires={"w": "float32"})
    assert {s.wire for m in wide.incoming(ONE) for s in m.segments} == {"float32"}


def test_a_cast_that_needs_scales_is_refused() -> None:
    spec = TensorSpec(name="w", shape=(4, 4))
    with pytest.raises(BridgeError, match="scales"):
        one(dense_chunk("w", spec, 0, WHOLE, dtype="float8_e4m3fn"), [spec], fsdp(2))


@pytest.mark.parametrize("sharding", [fsdp(3), tensor_parallel(1, 4, 1), tensor_parallel(1, 2, 2)])
@pytest.mark.parametrize("rank", [0, 1])
def test_experts_that_the_trainer_keeps_stacked(sharding: Sharding, rank: int) -> None:
    gate_up, half = TensorSpec(name="w", shape=(5, 8, 6)), Slice(rank=rank, size=2)
    state = weights((gate_up,))
    gate, up = state["w"].chunk(2, 1)
    tp = one(stacked_experts("w13", gate_up, dim=0, tp=half, halves=2), [gate_up], sharding)
    assert same_bytes(execute(tp, state)[ONE]["w13"], torch.cat([gate.chunk(2, 1)[rank], up.chunk(2, 1)[rank]], 1))
    ep = one(stacked_experts("w13", gate_up, dim=0, ep=half, halves=2), [gate_up], sharding)
    assert same_bytes(execute(ep, state)[ONE]["w13"], state["w"][[slice(0, 3), slice(3, 5)][rank]])
    down = one(stacked_experts("w2", gate_up, dim=1, tp=half), [gate_up], sharding)
    assert same_bytes(execute(down, state)[ONE]["w2"], state["w"].chunk(2, 2)[rank])


def test_a_parameter_stored_transposed() -> None:
    spec = TensorSpec(name="w", shape=(5, 7))
    region = Region(source="w", box=Box.full((5, 7)), target=Box((0, 2, 0), (7, 3, 5)), axes=(1, 0))
    parameter = Parameter(
        name="p", shape=(7, 3, 5), dtype="bfloat16", regions=(region,), padding=(Box((0, 0, 0), (7, 2, 5)),)
    )
    state = weights((spec,))
    assert same_bytes(execute(one(parameter, [spec], fsdp(2)), state)[ONE]["p"][:, 2], state["w"].T)


def test_uneven_and_empty_chunks_on_both_sides() -> None:
    spec = TensorSpec(name="w", shape=(5, 3))
    state = weights((spec,))
    for rank in range(4):
        parameter = dense_chunk("w", spec, 0, Slice(rank=rank, size=4))
        storage = execute(one(parameter, [spec], fsdp(3)), state)[ONE]["w"]
        assert same_bytes(storage, [*state["w"].chunk(4), state["w"][:0]][rank])


def test_a_missing_tensor_is_named() -> None:
    spec = TensorSpec(name="w", shape=(4,))
    with pytest.raises(BridgeError, match="needs `w`"):
        reshard(
            {}, [Engine(parameters=((dense_chunk("p", spec, 0, WHOLE),),), locations=(Location(node=0, gpu=0),))], []
        )


def test_rounds_too_small_for_a_tensor_are_refused() -> None:
    spec = TensorSpec(name="w", shape=(64,))
    engine = Engine(parameters=((dense_chunk("p", spec, 0, WHOLE),),), locations=(Location(node=1, gpu=0),))
    with pytest.raises(BridgeError, match="round_bytes"):
        reshard(place([spec], [(".*", fsdp(4))]), [engine], [Location(node=0, gpu=i) for i in range(4)], round_bytes=32)

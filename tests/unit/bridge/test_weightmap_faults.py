"""What a loader does that cannot be followed goes another way and says so; what does not fit is one clear error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from launcher.bridge.weightmap import LoadMethod, Writer, build_weight_map, check_alike, requirements, unused_tensors
from launcher.common.errors import BridgeError
from tests.unit.bridge.test_weightmap_trace import Toy, manifest, receive, snapshot


def plain(model: Toy, name: str, tensor: Tensor) -> None:
    parameter = model.live[name]
    assert parameter.shape == tensor.shape
    parameter.data.copy_(tensor)


def doubled(model: Toy, name: str, tensor: Tensor) -> None:
    model.live[name].data.copy_(tensor * 2 if name == "odd" else tensor)


def branching(model: Toy, name: str, tensor: Tensor) -> None:
    value = tensor if name != "odd" or tensor.abs().sum().item() > 0 else -tensor
    model.live[name].data.copy_(value)


@pytest.mark.parametrize("load", [doubled, branching], ids=["computes", "looks at values"])
def test_an_unknown_operation_is_reloaded_through_the_loader(load: Any) -> None:
    model = Toy(load, odd=(3, 2), plain=(4, 2))
    tensors = {"odd": torch.randn(3, 2), "plain": torch.randn(4, 2)}
    before = snapshot(model)
    # One module, so both; a loader that processes needs all of a module at once.
    weight_map = build_weight_map(model.load_weights, model.live, manifest(**tensors))
    assert snapshot(model)["odd"].equal(before["odd"])
    assert weight_map.methods == {"odd": LoadMethod.RELOADED, "plain": LoadMethod.RELOADED}
    assert "aten." in weight_map.parameters[0].reason and "odd" in weight_map.describe()
    assert weight_map.reloaded == ("odd", "plain")
    assert [p.name for p in requirements(weight_map)] == ["@odd", "@plain"]
    writer = Writer(weight_map, model.live, load=model.load_weights)
    receive(weight_map, writer, tensors)
    writer.commit()
    written = snapshot(model)
    model.load_weights(tensors.items())
    assert all(written[name].equal(value) for name, value in snapshot(model).items())


def test_only_the_module_in_question_is_reloaded() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(2, 3)

        def load_weights(self, weights: Any) -> None:
            for name, tensor in weights:
                self.get_parameter(name).data.copy_(tensor if name != "a.weight" else tensor.flip(0))

    model = Two()
    live = dict(model.named_parameters())
    weight_map = build_weight_map(model.load_weights, live, manifest(**live))
    reloaded = dict.fromkeys(("a.weight", "a.bias"), "reloaded")
    assert weight_map.methods == {**reloaded, "b.weight": "traced", "b.bias": "traced"}
    assert weight_map.reloaded == ("a.weight", "a.bias")


def test_a_name_that_the_engine_does_not_know() -> None:
    model = Toy(plain, w=(3, 2))
    with pytest.raises(BridgeError, match=r"`extra` \(1,\) does not go: the engine's loader says: 'extra'.*HINT"):
        build_weight_map(model.load_weights, model.live, manifest(w=torch.empty(3, 2), extra=torch.empty(1)))


def test_a_name_that_the_loader_drops_in_silence() -> None:
    def load(model: Toy, name: str, tensor: Tensor) -> None:
        if name != "bias":
            plain(model, name, tensor)

    model = Toy(load, w=(3, 2))
    entries = manifest(w=torch.empty(3, 2), bias=torch.empty(3))
    weight_maps = [build_weight_map(model.load_weights, model.live, entries)] * 2
    assert weight_maps[0].unused == ("bias",) and unused_tensors(weight_maps) == ("bias",)


@pytest.mark.seed("D7")
def test_a_parameter_that_the_trainer_does_not_have() -> None:
    model = Toy(plain, w=(3, 2), norm=(2,))
    with pytest.raises(BridgeError, match=r"`norm` \(2,\): no element is written by a tensor of the trainer.*HINT"):
        build_weight_map(model.load_weights, model.live, manifest(w=torch.empty(3, 2)))
    weight_map = build_weight_map(model.load_weights, model.live, manifest(w=torch.empty(3, 2)), optional=["norm"])
    assert weight_map.methods["norm"] is LoadMethod.UNCHANGED


@pytest.mark.seed("D9")
def test_a_missing_part_of_a_fused_parameter() -> None:
    def load(model: Toy, name: str, tensor: Tensor) -> None:
        model.qkv.data.narrow(0, 2 * "qkv".index(name), 2).copy_(tensor)

    model = Toy(load, qkv=(6, 3))
    with pytest.raises(BridgeError, match=r"`qkv` \(6, 3\): elements \[4:6, 0:3\] are written by no .*only `k`, `q`"):
        build_weight_map(model.load_weights, model.live, manifest(q=torch.empty(2, 3), k=torch.empty(2, 3)))


def test_a_shape_that_does_not_fit() -> None:
    model = Toy(plain, w=(3, 2))
    with pytest.raises(BridgeError, match=r"`w` \(3, 4\) does not go into `w` \(3, 2\)"):
        build_weight_map(model.load_weights, model.live, manifest(w=torch.empty(3, 4)))


def test_a_part_that_is_written_twice() -> None:
    def load(model: Toy, name: str, tensor: Tensor) -> None:
        model.w.data.narrow(0, 0 if name == "a" else 1, 2).copy_(tensor)

    model = Toy(load, w=(3, 2))
    bound = build_weight_map(
        model.load_weights, model.live, manifest(a=torch.empty(2, 2), b=torch.empty(2, 2))
    ).parameters[0]
    assert bound.method is LoadMethod.RELOADED and "overlap" in bound.reason


def test_a_loader_that_replaces_storage_is_refused() -> None:
    def load(model: Toy, name: str, tensor: Tensor) -> None:
        model.w.data = torch.zeros(3, 2)

    model = Toy(load, w=(3, 2))
    with pytest.raises(BridgeError, match="replaces the storage of `w`"):
        build_weight_map(model.load_weights, model.live, manifest(w=torch.empty(3, 2)))


HEADS, KV_HEADS, HEAD, HIDDEN = 4, 2, 6, 5


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("kind", ["weight", "bias"])
@pytest.mark.seed("D11")
def test_a_loader_that_fuses_permutes_and_splits_is_followed(kind: str, size: int) -> None:
    """Biases reach all three parts, each by its own heads, for every rank; more ranks than key heads share one."""
    torch.manual_seed(0)
    rest = (HIDDEN,) if kind == "weight" else ()
    heads = {"wq": HEADS, "wk": KV_HEADS, "wv": KV_HEADS}
    tensors = {name: torch.randn(count * HEAD, *rest) for name, count in heads.items()}
    copies = max(1, size // KV_HEADS)

    def halves_apart(name: str, tensor: Tensor) -> Tensor:
        if name == "wv":
            return tensor
        return tensor.view(heads[name], HEAD // 2, 2, *rest).transpose(1, 2).reshape(tensor.shape)

    for rank in range(size):

        def mine(name: str, tensor: Tensor, rank: int = rank) -> Tensor:
            parts, index = (size, rank) if name == "wq" else (size // copies, rank // copies)
            return halves_apart(name, tensor).chunk(parts)[index]

        expected = torch.cat([mine(name, tensor) for name, tensor in tensors.items()])
        starts = dict(
            zip(tensors, (0, HEADS // size * HEAD, len(expected) - len(mine("wv", tensors["wv"]))), strict=True)
        )

        def load(model: Toy, name: str, tensor: Tensor, rank: int = rank, starts: Any = starts) -> None:
            part = mine(name, tensor, rank)
            model.qkv.data[starts[name] : starts[name] + len(part)].copy_(part)

        model = Toy(load, qkv=tuple(expected.shape))
        weight_map = build_weight_map(model.load_weights, model.live, manifest(**tensors))
        assert set(weight_map.methods.values()) == {LoadMethod.TRACED}
        writer = Writer(weight_map, model.live)
        receive(weight_map, writer, tensors)
        writer.commit()
        assert torch.equal(model.qkv, expected)


def test_a_tensor_that_one_rank_alone_adds_is_zeroed_by_the_others_and_not_sent_to_them() -> None:
    def load(model: Toy, name: str, tensor: Tensor) -> None:
        if model.rank:
            tensor.zero_()
        model.live[name].data.copy_(tensor.clone())

    maps = []
    for rank in (0, 1):
        model = Toy(load, bias=(4,))
        model.rank = rank
        maps.append(build_weight_map(model.load_weights, model.live, manifest(bias=torch.empty(4))))
    assert [weight_map.methods for weight_map in maps] == [{"bias": LoadMethod.TRACED}] * 2
    assert [len(weight_map.copies) for weight_map in maps] == [1, 0]
    assert [region.volume for region in maps[1].parameters[0].padding] == [4]
    check_alike(maps)


def test_workers_that_would_load_one_parameter_in_different_ways_are_refused() -> None:
    maps = []
    for load in (plain, doubled):
        model = Toy(load, odd=(3, 2))
        maps.append(build_weight_map(model.load_weights, model.live, manifest(odd=torch.empty(3, 2))))
    with pytest.raises(
        BridgeError, match=r"`odd` would be loaded in different ways: traced in worker 0, reloaded in wo"
    ):
        check_alike(maps)


def test_a_module_that_needs_packing_and_its_loader_at_once_is_refused() -> None:
    model = Toy(doubled, odd=(3, 2), packed=(4, 2))
    tensors = manifest(odd=torch.empty(3, 2), packed=torch.empty(4, 2))
    with pytest.raises(BridgeError, match="`packed` is kept packed, and `odd` beside it can only be loaded anew"):
        build_weight_map(model.load_weights, model.live, tensors, packed={"packed": "by the kernel"})

"""A loader is followed on stand-ins: what it would copy is written down exactly, and no parameter changes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from launcher.bridge.plan import Box
from launcher.bridge.protocol import Manifest, TensorEntry
from launcher.bridge.settings import Mode
from launcher.bridge.weightmap import LoadMethod, WeightMap, Writer, build_weight_map, requirements
from launcher.common.errors import BridgeError

Weights = Iterable[tuple[str, Tensor]]


class Toy(nn.Module):
    """A model whose ``load_weights`` is given by a test; parameters by name and shape."""

    def __init__(self, load: object, dtype: torch.dtype = torch.float32, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.load = load
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape).to(dtype), requires_grad=False))

    def load_weights(self, weights: Weights) -> None:
        for name, tensor in weights:
            self.load(self, name, tensor)  # type: ignore[operator]

    @property
    def live(self) -> dict[str, Tensor]:
        return dict(self.named_parameters(remove_duplicate=False))


def manifest(**tensors: Tensor) -> Manifest:
    return tuple(
        TensorEntry(name=name, shape=tuple(t.shape), dtype=str(t.dtype).removeprefix("torch."))
        for name, t in tensors.items()
    )


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def receive(weight_map: WeightMap, writer: Writer, tensors: dict[str, Tensor]) -> None:
    """What a transport does: fills each part from the trainer's box."""
    for parameter in requirements(weight_map):
        into = writer.received[parameter.name]
        for region in parameter.regions:
            box = tensors[region.source][region.box.slices()]
            value = box if region.axes is None else box.permute(region.axes)
            into[region.target.slices()].copy_(value.reshape(region.target.shape))


def replayed_equals_loaded(model: Toy, tensors: dict[str, Tensor]) -> WeightMap:
    """Binds, replays in every way there is, and compares with what the loader itself makes of the tensors."""
    before = snapshot(model)
    weight_map = build_weight_map(model.load_weights, model.live, manifest(**tensors))
    assert same(snapshot(model), before), "tracing changed a parameter"
    model.load_weights(tensors.items())
    loaded = snapshot(model)
    for in_place in (False, True):
        _reset(model, before, loaded, weight_map)
        writer = Writer(weight_map, model.live, mode=Mode.INPLACE if in_place else Mode.SHADOW)
        receive(weight_map, writer, tensors)
        writer.commit()
        assert same(snapshot(model), loaded)
    again = WeightMap.from_json(json.loads(json.dumps(weight_map.to_json())))
    assert again == weight_map and again.digest == weight_map.digest
    return weight_map


def _reset(model: Toy, before: dict[str, Tensor], loaded: dict[str, Tensor], weight_map: WeightMap) -> None:
    for bound in weight_map.parameters:
        parameter = model.live[bound.name].data
        parameter.copy_(before[bound.name])
        for box in bound.padding:
            parameter[box.slices()] = loaded[bound.name][box.slices()]


def test_fused_parts_and_a_transposed_one_become_boxes() -> None:
    def load(model: Toy, name: str, tensor: Tensor) -> None:
        if name == "down":
            model.down.data.copy_(tensor.t())
        else:
            index = ["q", "k", "v"].index(name)
            model.qkv.data.narrow(0, 4 * index, 4).copy_(tensor.chunk(2, 0)[1])

    model = Toy(load, qkv=(12, 5), down=(3, 7))
    tensors = {name: torch.randn(8, 5) for name in "qkv"} | {"down": torch.randn(7, 3)}
    weight_map = replayed_equals_loaded(model, tensors)
    assert set(weight_map.methods.values()) == {LoadMethod.TRACED}
    assert weight_map.copies[0].source_box == Box((4, 0), (8, 5))
    assert [region.axes for p in requirements(weight_map) for region in p.regions] == [None, None, None, (1, 0)]


@pytest.mark.seed("D31")
def test_padding_is_reported_and_never_received() -> None:
    def load(model: Toy, name: str, tensor: Tensor) -> None:
        model.head[: tensor.shape[0]].data.copy_(tensor)
        model.head[tensor.shape[0] :].data.fill_(0)

    weight_map = replayed_equals_loaded(Toy(load, head=(8, 2)), {"head": torch.randn(5, 2)})
    assert weight_map.parameters[0].padding == (Box((5, 0), (8, 2)),)
    assert requirements(weight_map)[0].padding == (Box((5, 0), (8, 2)),)
    assert "padding   head: 6 elements" in weight_map.describe()


def test_a_fill_before_the_copies_is_padding_and_a_fill_after_them_is_not_followed() -> None:
    def before(model: Toy, name: str, tensor: Tensor) -> None:
        model.w.data.zero_()
        model.w.data[1:3].copy_(tensor)

    weight_map = replayed_equals_loaded(Toy(before, w=(4, 2)), {"w": torch.randn(2, 2)})
    assert weight_map.parameters[0].padding == (Box((0, 0), (1, 2)), Box((3, 0), (4, 2)))

    def after(model: Toy, name: str, tensor: Tensor) -> None:
        model.w.data.copy_(tensor)
        model.w.data[0].fill_(1)

    model = Toy(after, w=(4, 2))
    bound = build_weight_map(model.load_weights, model.live, manifest(w=torch.empty(4, 2))).parameters[0]
    assert bound.method is LoadMethod.RELOADED and "filled with a constant after" in bound.reason


@pytest.mark.seed("D31")
def test_tied_parameters_have_one_storage_and_a_trainers_tied_name_its_owner() -> None:
    def load(model: Toy, name: str, tensor: Tensor) -> None:
        model.live[name].data.copy_(tensor)

    model = Toy(load, embed=(4, 2), head=(4, 2))
    model.head = model.embed
    entries = (
        *manifest(embed=torch.empty(4, 2)),
        TensorEntry(name="head", shape=(4, 2), dtype="float32", alias_of="embed"),
    )
    weight_map = build_weight_map(model.load_weights, model.live, entries)
    assert [(b.name, b.aliases) for b in weight_map.parameters] == [("embed", ("head",))]
    assert {copy.source_name for copy in weight_map.copies} == {"embed"}
    untied = Toy(load, embed=(4, 2), head=(4, 2))
    weight_map = build_weight_map(untied.load_weights, untied.live, entries)
    assert [(c.source_name, c.parameter) for c in weight_map.copies] == [("embed", "embed"), ("embed", "head")]


def test_casts_round_once() -> None:
    def regions(model: Toy, name: str, tensor: Tensor) -> None:
        model.w.data.copy_(tensor.to(torch.float64).contiguous())

    tensors = {"w": torch.randn(4, 6)}
    replayed_equals_loaded(Toy(regions, torch.bfloat16, w=(4, 6)), tensors)

    def twice(model: Toy, name: str, tensor: Tensor) -> None:
        model.w.data.copy_(tensor.half())

    model = Toy(twice, torch.bfloat16, w=(4, 6))
    bound = build_weight_map(model.load_weights, model.live, manifest(**tensors)).parameters[0]
    assert bound.method is LoadMethod.RELOADED and "rounded to torch.float16" in bound.reason


def test_rotary_halves_are_received_aside_and_put_in_place() -> None:
    def load(model: Toy, name: str, tensor: Tensor) -> None:
        heads = tensor.view(2, 3, 2, 5).transpose(1, 2).reshape(12, 5)
        model.q.data.copy_(heads.narrow(0, 6, 6))

    weight_map = replayed_equals_loaded(Toy(load, q=(6, 5)), {"q": torch.randn(12, 5)})
    assert [(p.name, p.shape) for p in requirements(weight_map)] == [("q#0", (6, 5))]
    assert weight_map.copies[0].source_box == Box((6, 0), (12, 5))


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_chain_of_views_is_replayed_exactly_or_refused(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    source = torch.arange(float(torch.Size(shape).numel())).view(shape)
    steps = list(_chain(data, source))

    def view(tensor: Tensor) -> Tensor:
        for step, argument in steps:
            tensor = getattr(tensor, step)(*argument)
        return tensor

    def load(model: Toy, name: str, tensor: Tensor) -> None:
        model.w.data.copy_(view(tensor))

    model = Toy(load, w=tuple(view(source).shape))
    weight_map = build_weight_map(model.load_weights, model.live, manifest(w=source))
    if weight_map.parameters[0].method is LoadMethod.TRACED:
        replayed_equals_loaded(model, {"w": source})
    else:
        assert "box" in weight_map.parameters[0].reason or "irregular" in weight_map.parameters[0].reason


def _chain(data: st.DataObject, tensor: Tensor) -> Iterator[tuple[str, tuple[object, ...]]]:
    for _ in range(data.draw(st.integers(0, 4))):
        dim = data.draw(st.integers(0, max(tensor.dim() - 1, 0)))
        kind = data.draw(
            st.sampled_from(["transpose", "narrow", "reshape", "contiguous", "unsqueeze", "double", "unflatten"])
        )
        arguments: tuple[object, ...] = ()
        if kind == "transpose" and tensor.dim():
            arguments = (dim, data.draw(st.integers(0, tensor.dim() - 1)))
        elif kind == "narrow" and tensor.dim():
            start = data.draw(st.integers(0, tensor.shape[dim] - 1))
            arguments = (dim, start, data.draw(st.integers(1, tensor.shape[dim] - start)))
        elif kind == "reshape":
            arguments = (-1,)
        elif kind == "unsqueeze":
            arguments = (0,)
        elif kind == "unflatten" and tensor.dim() and tensor.shape[dim] % 2 == 0:
            arguments = (dim, (-1, 2))
        elif kind not in ("contiguous", "double"):
            continue
        yield kind, arguments
        tensor = getattr(tensor, kind)(*arguments)


def test_weightmap_meta_parameters_takes_no_memory() -> None:
    def load(model: Toy, name: str, tensor: Tensor) -> None:
        model.w.data.copy_(tensor)

    with torch.device("meta"):
        model = Toy(load, w=(1 << 20, 1 << 20))
    big = torch.empty(1 << 20, 1 << 20, device="meta")
    assert len(build_weight_map(model.load_weights, model.live, manifest(w=big)).copies) == 1


def test_a_changed_parameter_is_refused_when_a_writer_is_made() -> None:
    def load(model: Toy, name: str, tensor: Tensor) -> None:
        model.w.data.copy_(tensor)

    model = Toy(load, w=(4, 2))
    weight_map = build_weight_map(model.load_weights, model.live, manifest(w=torch.empty(4, 2)))
    with pytest.raises(BridgeError, match=r"`w` is .*build it again"):
        Writer(weight_map, {"w": torch.empty(2, 4)})

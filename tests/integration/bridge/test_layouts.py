"""Names, orders and ranks that are not the checkpoint's, over gloo: the engine gets the checkpoint's bytes."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from launcher.bridge.settings import UPDATES
from launcher.bridge.trainer.api import Bridge
from launcher.bridge.trainer.source import WeightSource, rotary_halves, rows
from tests.integration.bridge.plain_replica import PlainReplica, State, serving
from tests.integration.bridge.rank_process import RankGroup, rank_group

TOKEN = "a token of the tests"
RANKS, LAYERS, HEADS, GROUPS, SIZE, HIDDEN, INNER, VOCAB, EXPERTS = 4, 2, 4, 2, 6, 10, 12, 14, 4


def checkpoint(version: int) -> State:
    """A model as Hugging Face names it."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        head = f"model.layers.{layer}"
        shapes |= {
            f"{head}.self_attn.q_proj.weight": (HEADS * SIZE, HIDDEN),
            f"{head}.self_attn.k_proj.weight": (GROUPS * SIZE, HIDDEN),
            f"{head}.self_attn.v_proj.weight": (GROUPS * SIZE, HIDDEN),
            f"{head}.self_attn.o_proj.weight": (HIDDEN, HEADS * SIZE),
            f"{head}.mlp.gate_proj.weight": (INNER, HIDDEN),
            f"{head}.mlp.up_proj.weight": (INNER, HIDDEN),
            f"{head}.mlp.down_proj.weight": (HIDDEN, INNER),
        }
        shapes |= {f"{head}.mlp.experts.{expert}.up_proj.weight": (INNER, HIDDEN) for expert in range(EXPERTS)}
    return {name: noise(f"{version} {name}", shape) for name, shape in shapes.items()}


def noise(seed: str, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(seed.encode())))


def interleaved(halves: torch.Tensor, heads: int) -> torch.Tensor:
    """Query or key as Meta keeps it."""
    size = halves.shape[0] // heads
    return halves.view(heads, 2, size // 2, *halves.shape[1:]).transpose(1, 2).reshape(halves.shape)


class Attention(nn.Module):
    """torchtitan's names."""

    def __init__(self, whole: State) -> None:
        super().__init__()
        for name in ("wq", "wk", "wv", "wo"):
            weight = whole[f"model.layers.0.self_attn.{name[1]}_proj.weight"]
            if name in ("wq", "wk"):
                weight = interleaved(weight, HEADS if name == "wq" else GROUPS)
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight = nn.Parameter(weight)
            setattr(self, name, linear)


def fsdp_and_tensor_parallel(whole: State, _rank: int) -> WeightSource:
    """Interleaved query and key under other names, on a mesh of 2 x 2."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    module = Attention(whole)
    plan = {name: ColwiseParallel() for name in ("wq", "wk", "wv")} | {"wo": RowwiseParallel()}
    parallelize_module(module, mesh["tp"], plan)
    fully_shard(module, mesh=mesh["dp"])
    source = WeightSource()
    for name, heads in (("wq", HEADS), ("wk", GROUPS), ("wv", None), ("wo", None)):
        weight = getattr(module, name).weight
        maps = None if heads is None else rotary_halves(weight.shape, heads)
        source.add(f"model.layers.0.self_attn.{name[1]}_proj.weight", weight, maps=maps)
    return source


def pipeline_and_tensor_parallel(whole: State, rank: int) -> WeightSource:
    """Two stages, each with its layer under the same local name; interleaved qkv, and fc1 as gate and up of a rank."""
    stage, tp = divmod(rank, 2)
    source, layer, per = WeightSource(), f"model.layers.{stage}", HEADS // GROUPS
    q, k, v = (whole[f"{layer}.self_attn.{name}_proj.weight"] for name in "qkv")
    groups = range(tp * GROUPS // 2, (tp + 1) * GROUPS // 2)
    qkv = torch.cat(
        [
            block
            for g in groups
            for block in (q[g * per * SIZE : (g + 1) * per * SIZE], *(x[g * SIZE : (g + 1) * SIZE] for x in (k, v)))
        ]
    )
    for name, at, count in (("q", 0, per), ("k", per, 1), ("v", per + 1, 1)):
        runs = [((i * (per + 2) + at) * SIZE, count * SIZE, g * count * SIZE) for i, g in enumerate(groups)]
        shape = whole[f"{layer}.self_attn.{name}_proj.weight"].shape
        source.add(f"{layer}.self_attn.{name}_proj.weight", qkv, maps=rows(qkv.shape, runs), target_shape=shape)
    half = INNER // 2
    gate, up = (whole[f"{layer}.mlp.{name}_proj.weight"].chunk(2)[tp] for name in ("gate", "up"))
    fc1 = torch.cat([gate, up])
    for index, name in enumerate(("gate", "up")):
        maps = rows(fc1.shape, [(index * half, half, tp * half)])
        source.add(f"{layer}.mlp.{name}_proj.weight", fc1, maps=maps, target_shape=(INNER, HIDDEN))
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        weight = whole[f"{layer}.{name}.weight"]
        peers = (2 * stage, 2 * stage + 1)
        source.add(f"{layer}.{name}.weight", weight.chunk(2, 1)[tp].clone(), shard=(1, peers, rank), shape=weight.shape)
    if stage == 0:
        weight = whole["model.embed_tokens.weight"]
        source.add("model.embed_tokens.weight", weight.chunk(2)[tp], start=(tp * VOCAB // 2, 0), shape=weight.shape)
    else:
        source.add("model.norm.weight", whole["model.norm.weight"])
    return source


def experts(whole: State, rank: int) -> WeightSource:
    """Each rank has one expert of each layer, under a name that all have; what is dense is on every rank."""
    source = WeightSource()
    for name, tensor in whole.items():
        if f".experts.{rank}." in name or ".experts." not in name:
            source.add(name, tensor)
    return source


def replicas_of_a_tensor_parallel_mesh(whole: State, _rank: int) -> WeightSource:
    """Ranks 0 and 1 share each tensor, and so do ranks 2 and 3."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))["tp"]
    source = WeightSource()
    for name, tensor in whole.items():
        source.add(name, distribute_tensor(tensor, mesh, [Shard(tensor.dim() - 1)], src_data_rank=None))
    return source


def flat_partitions(whole: State, rank: int) -> WeightSource:
    """Each rank has a stretch of each tensor's elements, the last one padded."""
    source = WeightSource()
    for name, tensor in whole.items():
        size = -(-tensor.numel() // RANKS)
        flat = torch.nn.functional.pad(tensor.view(-1), (0, size * RANKS - tensor.numel()))
        source.add_flat(name, flat[rank * size : (rank + 1) * size].clone(), begin=rank * size, shape=tensor.shape)
    return source


LAYOUTS: dict[str, tuple[Callable[[State, int], WeightSource], Callable[[str], bool]]] = {
    "fsdp and tp": (fsdp_and_tensor_parallel, lambda name: ".0.self_attn" in name),
    "pp and tp": (pipeline_and_tensor_parallel, lambda name: ".experts." not in name),
    "ep": (experts, lambda _name: True),
    "tp under ddp": (replicas_of_a_tensor_parallel_mesh, lambda _name: True),
    "flat": (flat_partitions, lambda _name: True),
}
"""Each with the tensors that it has."""


def publish(bridge: Bridge, rank: int, layout: str, version: int) -> int:
    """Publishes a version in a layout; how many bytes that took."""
    return bridge.publish(LAYOUTS[layout][0](checkpoint(version), rank), version).bytes


@pytest.fixture(scope="module", params=UPDATES)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[PlainReplica, RankGroup]]:
    replica = PlainReplica({}, {})
    with serving(replica, TOKEN) as url, rank_group(RANKS, url, TOKEN, update=request.param) as ranks:
        yield replica, ranks


VERSIONS = {layout: 10 * index + 1 for index, layout in enumerate(LAYOUTS)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_engine_gets_the_checkpoints_bytes_and_each_of_them_once(
    served: tuple[PlainReplica, RankGroup], layout: str
) -> None:
    replica, ranks = served
    replica.live = {n: torch.zeros_like(t) for n, t in checkpoint(0).items() if LAYOUTS[layout][1](n)}
    for version in (VERSIONS[layout], VERSIONS[layout] + 1):
        answers = ranks.run(publish, layout, version)
        assert all("value" in answer for answer in answers), answers
        for name, tensor in replica.live.items():
            assert torch.equal(tensor, checkpoint(version)[name]), name
        whole = sum(tensor.numel() * 4 for tensor in replica.live.values())
        # Segments begin at multiples of 16 bytes, and changes carry their positions.
        assert whole <= answers[0]["value"] < 3 * whole

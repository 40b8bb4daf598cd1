"""Placements without torch agree with what FSDP2 and DTensor really hold."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

from launcher.bridge.plan import Box, Sharding, TensorSpec, place
from launcher.bridge.plan.sharding import fsdp, fsdp_tp, hsdp
from launcher.common.errors import BridgeError


@pytest.fixture
def world() -> Iterator[None]:
    """Leaves no process group behind."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def become(rank: int, size: int) -> None:
    """Makes this process one rank of a world whose collectives do nothing."""
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())


class Block(torch.nn.Module):
    """Rows and columns that do not divide by the meshes below."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(6, 10)
        self.down = torch.nn.Linear(10, 6)
        self.norm = torch.nn.LayerNorm(5)


def held(tensor: torch.Tensor, whole: torch.Tensor) -> Box:
    """Which box of ``whole``, whose elements are all different, a rank holds."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if not local.numel():
        return Box((0,) * whole.dim(), (0,) * whole.dim())
    where = (torch.isin(whole, local)).nonzero()
    return Box(tuple(where.amin(0).tolist()), tuple((where.amax(0) + 1).tolist()))


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(
    ("mesh", "names"),
    [
        ((4,), ("shard",)),
        ((3,), ("shard",)),
        ((2, 2), ("replicate", "shard")),
        ((2, 2), ("shard", "tp")),
        ((4, 2), ("shard", "tp")),
    ],
)
@pytest.mark.seed("D17")
def test_every_rank_holds_what_fsdp2_gives_it(mesh: tuple[int, ...], names: tuple[str, ...]) -> None:
    size = torch.Size(mesh).numel()
    for rank in range(size):
        become(rank, size)
        block = Block()
        for parameter in block.parameters():
            parameter.data = torch.arange(parameter.numel(), dtype=torch.float32).view(parameter.shape)
        whole = {name: parameter.detach().clone() for name, parameter in block.named_parameters()}
        device_mesh = init_device_mesh("cpu", mesh, mesh_dim_names=names)
        if "tp" in names:
            plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
            parallelize_module(block, device_mesh["tp"], plan, src_data_rank=None)
            fully_shard(block, mesh=device_mesh["shard"])
        else:
            fully_shard(block, mesh=device_mesh)
        for name, parameter in block.named_parameters():
            assert isinstance(parameter, DTensor)
            placements = [str(p) for p in parameter.placements]
            ours = Sharding.parse(parameter.device_mesh.shape, placements).boxes(parameter.shape)
            # A module that is not parallelized lives on FSDP's own mesh: its ranks are a row of the whole mesh.
            whole_mesh = parameter.device_mesh.ndim == len(mesh)
            index = rank if whole_mesh else device_mesh.get_local_rank("shard")
            theirs = held(parameter, whole[name])
            assert ours[index] == theirs or not (ours[index].volume or theirs.volume), (name, rank, placements)


@pytest.mark.usefixtures("world")
def test_a_plain_dtensor_cuts_from_left_to_right() -> None:
    whole = torch.arange(60.0).view(10, 6)
    for rank in range(4):
        become(rank, 4)
        mesh = init_device_mesh("cpu", (2, 2))
        for placements in ([Shard(0), Shard(0)], [Shard(1), Shard(0)], [Replicate(), Shard(1)]):
            tensor = distribute_tensor(whole, mesh, placements, src_data_rank=None)
            ours = Sharding.parse((2, 2), [str(p) for p in placements]).boxes((10, 6))[rank]
            assert ours == held(tensor, whole)


def test_the_names_are_short_for_what_dtensor_prints() -> None:
    assert fsdp_tp(2, 4, 0) == Sharding.parse((2, 4), ("_S(0, 4)", "S(0)"))
    assert hsdp(2, 3).boxes((7,))[5] == fsdp(3).boxes((7,))[2] == Box((6,), (7,))


@pytest.mark.parametrize(
    ("mesh", "placements", "text"),
    [
        ((2,), ("P(sum)",), "none of"),
        ((2, 4), ("_S(0, 2)", "S(0)"), "split factor 4"),
        ((2, 4), ("R",), "one entry per mesh"),
    ],
)
def test_placements_that_cannot_be_right_are_refused(
    mesh: tuple[int, ...], placements: tuple[str, ...], text: str
) -> None:
    with pytest.raises(BridgeError, match=text):
        Sharding.parse(mesh, placements)


def test_a_tensor_without_a_rule_is_named() -> None:
    with pytest.raises(BridgeError, match="other"):
        place([TensorSpec(name="other", shape=(4,))], [("weight", fsdp(2))])

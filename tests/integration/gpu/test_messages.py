"""On a GPU, messages are packed, unpacked and summed by tables as they are tensor by tensor."""

from __future__ import annotations

import pytest
import torch

from launcher.bridge.codec.delta import Encoding, Head, apply, body_bytes, words
from launcher.bridge.codec.delta_encode import Scratch, encode
from launcher.bridge.codec.messages import Messages, digest_received, digest_sent
from launcher.bridge.codec.pack import pack, unpack
from launcher.bridge.plan import Engine, Location, Plan, Receiver, place, reshard
from launcher.bridge.plan.sharding import fsdp_tp
from launcher.common.errors import TransferError
from launcher.testing.bench.engine_layout import Slice
from launcher.testing.bench.models import Model
from tests.integration.bridge.transfer_case import TransferCase, held

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels need a GPU"),
]
EXPERTS = Model(
    hidden_size=96,
    num_layers=1,
    num_heads=8,
    num_kv_heads=2,
    head_dim=12,
    intermediate_size=288,
    vocab_size=3000,
    num_experts=6,
    moe_intermediate_size=144,
)


def check(plan: Plan, whole: dict[str, torch.Tensor]) -> None:
    """Every message of a plan, twice: the second time with tables that were made the first time."""
    whole_version = [message for rank in range(len(plan.trainers)) for message in plan.outgoing(rank)]
    kernels = Messages(plan, whole_version)
    parameters = {
        rank: {p.name: torch.zeros(p.shape, dtype=getattr(torch, p.dtype)) for p in needs}
        for rank, needs in enumerate(plan.engines[0].parameters)
    }
    on_gpu = {rank: {name: tensor.cuda() for name, tensor in of.items()} for rank, of in parameters.items()}
    for rank in range(len(plan.trainers)):
        shards = held(plan, whole, rank)
        shards_on_gpu = {name: tensor.copy(torch.Tensor.cuda) for name, tensor in shards.items()}
        for message in (message for message in whole_version if message.sender == rank):
            buffer = torch.zeros(message.nbytes, dtype=torch.uint8)
            pack(message, shards, buffer)
            unpack(message, buffer, parameters[message.receiver.rank])
            for _ in range(2):
                packed = torch.zeros(message.nbytes, dtype=torch.uint8, device="cuda")
                kernels.pack(message, shards_on_gpu, packed)
                assert torch.equal(packed.cpu(), buffer)
                assert int(kernels.digest_sent(message, shards_on_gpu)) == int(digest_sent(plan, message, shards))
                received = on_gpu[message.receiver.rank]
                kernels.unpack(message, packed, received)
                expected = int(digest_received(plan, message, parameters[message.receiver.rank]))
                assert int(kernels.digest_received(message, received)) == expected
    for rank, of in parameters.items():
        assert list(plan.incoming(Receiver(engine=0, rank=rank)))
        for name, tensor in of.items():
            here = on_gpu[rank][name].cpu()
            assert torch.equal(here.view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8)), name


@pytest.mark.parametrize("placement", ["plain", "fsdp", "tp", "fsdp+tp"])
def test_boxes_at_odd_places_and_casts(placement: str) -> None:
    case = TransferCase(trainers=4, workers=2, placement=placement)
    check(case.plan, case.state(1))


@pytest.mark.parametrize("round_bytes", [1 << 14, 1 << 24])
def test_a_mixture_of_experts(round_bytes: int) -> None:
    specs = EXPERTS.tensors()
    engine = Engine(
        parameters=tuple(EXPERTS.parameters(Slice(rank=rank, size=2)) for rank in range(2)),
        locations=tuple(Location(node=1, gpu=rank) for rank in range(2)),
    )
    trainers = [Location(node=0, gpu=rank) for rank in range(4)]
    plan = reshard(place(specs, [(".*", fsdp_tp(2, 2, 0))]), [engine], trainers, round_bytes=round_bytes)
    check(plan, {spec.name: torch.randn(spec.shape).to(getattr(torch, spec.dtype)) for spec in specs})


def test_a_tensor_that_has_moved_is_found() -> None:
    case = TransferCase(trainers=1, workers=1)
    message = next(iter(case.plan.outgoing(0)))
    kernels = Messages(case.plan, [message])
    for version in (1, 2, 3):
        shards = case.shards(case.state(version), 0)
        kept = {name: tensor.copy(torch.Tensor.cuda) for name, tensor in shards.items()}
        expected, packed = torch.zeros(message.nbytes, dtype=torch.uint8), torch.zeros(message.nbytes).byte().cuda()
        pack(message, shards, expected)
        kernels.pack(message, kept, packed)
        assert torch.equal(packed.cpu(), expected)


@pytest.mark.parametrize("placement", ["plain", "fsdp", "tp", "fsdp+tp"])
@pytest.mark.parametrize("density", [0.01, 0.2])
def test_changes_are_found_and_written_as_on_a_cpu(placement: str, density: float) -> None:
    """Contiguous, strided, cast and turned tensors; the second version with tables that the first one made."""
    case = TransferCase(trainers=2, workers=2, placement=placement)
    old, random = case.state(1), torch.Generator().manual_seed(0)
    whole_version = [message for rank in range(2) for message in case.plan.outgoing(rank)]
    kernels, plain = Messages(case.plan, whole_version), Messages(case.plan, [])
    needs = case.plan.engines[0].parameters
    parameters = [{p.name: torch.zeros(p.shape, dtype=getattr(torch, p.dtype)) for p in of} for of in needs]
    for message in whole_version:
        buffer = torch.zeros(message.nbytes, dtype=torch.uint8)
        pack(case.plan, message, case.shards(old, message.sender), buffer)
        unpack(message, buffer, parameters[message.receiver.rank])
    on_gpu = [{name: tensor.cuda() for name, tensor in of.items()} for of in parameters]
    for _ in range(2):
        new = {
            name: torch.where(torch.rand(tensor.shape, generator=random) < density, -tensor, tensor)
            for name, tensor in old.items()
        }
        for message in whole_version:
            shards = [case.shards(state, message.sender) for state in (new, old)]
            expected = encode(plain, message, *shards, Scratch())
            shards_on_gpu = [{name: tensor.cuda() for name, tensor in of.items()} for of in shards]
            changes = encode(kernels, message, *shards_on_gpu, Scratch())
            assert changes.changed == expected.changed
            body = torch.empty(changes.head.nbytes, dtype=torch.uint8, device="cuda")
            changes.write(body)
            apply(kernels, message, changes.head, body, on_gpu[message.receiver.rank])
            apply(plain, message, changes.head, body.cpu(), parameters[message.receiver.rank])
        for here, there in zip(parameters, on_gpu, strict=True):
            for name, tensor in here.items():
                here_bytes = there[name].cpu().view(-1).view(torch.uint8)
                assert torch.equal(here_bytes, tensor.view(-1).view(torch.uint8)), name
        old = new


def test_a_change_outside_of_every_tensor_is_refused_and_writes_nothing() -> None:
    case = TransferCase(trainers=1, workers=1)
    message = next(iter(case.plan.outgoing(0)))
    parameters = {
        p.name: torch.zeros(p.shape, dtype=getattr(torch, p.dtype), device="cuda")
        for p in case.plan.engines[0].parameters[0]
    }
    nbytes = body_bytes(message, Encoding.INDEX, 2)
    body = torch.ones(nbytes, dtype=torch.uint8, device="cuda")
    body[:8].view(torch.int32).copy_(torch.tensor([0, words(message)]))
    head = Head(encoding=Encoding.INDEX, count=2, nbytes=nbytes)
    with pytest.raises(TransferError, match="outside"):
        apply(Messages(case.plan, [message]), message, head, body, parameters)
    assert not any(tensor.any() for tensor in parameters.values())

"""Changes of a message, encoded and written over the version before, leave exactly the new version, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.bridge.codec.delta import (
    HEAD_BYTES,
    Encoding,
    Head,
    apply,
    body_bytes,
    mask_of,
    packed,
    positions_of,
    unpacked,
    word_bytes,
    words,
)
from launcher.bridge.codec.delta_encode import WHOLE_ABOVE, Base, Changes, Scratch, encode
from launcher.bridge.codec.local import LocalTensor
from launcher.bridge.codec.messages import Messages, digest_received, digest_sent
from launcher.bridge.codec.pack import unpack
from launcher.bridge.plan import Box, Engine, Location, Plan, Receiver, TensorSpec, place, reshard
from launcher.bridge.plan.sharding import replicated as everywhere
from launcher.common.errors import TransferError
from launcher.testing.bench.engine_layout import replicated
from tests.integration.bridge.transfer_case import TransferCase
from tests.unit.bridge.memory_bounds import changes_bytes

State = dict[str, torch.Tensor]


def local(tensors: Mapping[str, torch.Tensor | LocalTensor]) -> dict[str, LocalTensor]:
    """As a rank that holds each whole."""
    return {name: t if isinstance(t, LocalTensor) else LocalTensor.whole(t) for name, t in tensors.items()}


def over_the_wire(plan: Plan, changes: Changes, parameters: State) -> None:
    """As a transport would carry it, into memory that was used before."""
    head, body = torch.full((HEAD_BYTES,), 7, dtype=torch.uint8), torch.full((changes.head.nbytes,), 7).byte()
    changes.head.write(head)
    changes.write(body)
    apply(Messages(plan, []), changes.message, Head.read(head, changes.message), body, parameters)


def plan_of(*specs: TensorSpec, dtypes: dict[str, str] | None = None) -> Plan:
    """One rank sends tensors to one worker that keeps them whole, in one message."""
    kept = tuple(replicated(spec.name, spec, dtype=(dtypes or {}).get(spec.name)) for spec in specs)
    engine = Engine(parameters=(kept,), locations=(Location(node=0, gpu=1),))
    return reshard(place(specs, [(".*", everywhere(1))]), [engine], [Location(node=0, gpu=0)], round_bytes=1 << 20)


def bits(*patterns: int) -> torch.Tensor:
    return torch.tensor(patterns, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    density=st.sampled_from([0.0, 0.002, 0.02, 0.1, 0.6, 1.0]),
    placement=st.sampled_from(["plain", "fsdp", "tp", "fsdp+tp"]),
    trainers=st.integers(1, 3),
    workers=st.sampled_from([1, 2]),
    round_bytes=st.sampled_from([700, 1 << 20]),
    whole_above=st.sampled_from([1 / 32, 0.25, 1.0]),
)
def test_any_placement_at_any_density_ends_with_the_new_weights(
    density: float, placement: str, trainers: int, workers: int, round_bytes: int, whole_above: float
) -> None:
    """Fused, padded, permuted, cast and sliced parameters; random bits, so also what is not a number."""
    case = TransferCase(trainers=trainers, workers=workers, placement=placement, round_bytes=round_bytes)
    old, new = case.state(1), case.state(2, density)
    found = {rank: case.expected(old, rank) for rank in range(workers)}
    found = {rank: {name: tensor.clone() for name, tensor in state.items()} for rank, state in found.items()}
    for sender in range(trainers):
        base = Base()
        base.advance(1, case.shards(old, sender), None, [case.plan])
        shards, scratch = case.shards(new, sender), Scratch()
        for message in case.plan.outgoing(sender):
            with patch.dict(WHOLE_ABOVE, cpu=whole_above):
                changes = encode(Messages(case.plan, []), message, local(shards), base.shards, scratch)
            assert changes.head.nbytes <= message.nbytes
            assert (changes.changed == 0) == (changes.head.nbytes == 0)
            parameters = found[message.receiver.rank]
            over_the_wire(case.plan, changes, parameters)
            assert int(digest_sent(case.plan, message, shards)) == int(digest_received(case.plan, message, parameters))
    for rank, state in found.items():
        for name, tensor in case.expected(new, rank).items():
            assert torch.equal(_bytes(state[name]), _bytes(tensor)), name


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def test_a_change_is_one_of_bits_not_of_values() -> None:
    """0.0 becomes -0.0, and one pattern that is not a number another: by value nothing has changed, or everything."""
    plan = plan_of(TensorSpec(name="gate", shape=(160,)))
    (message,) = plan.outgoing(0)
    same = [0x4000] * 154
    old = bits(0x0000, 0x7FC0, 0x7FC1, 0x3F80, 0x8000, 0x7F80, *same)
    new = bits(0x8000, 0x7FC1, 0x7FC1, 0x3F80, 0x0000, 0x7F80, *same)
    changes = encode(Messages(plan, []), message, local({"gate": new}), local({"gate": old}), Scratch())
    assert changes.positions.tolist() == [0, 1, 4]
    assert (changes.compared, changes.changed) == (160, 3)
    parameters = {"gate": old.clone()}
    over_the_wire(plan, changes, parameters)
    assert parameters["gate"].view(torch.int16).tolist() == new.view(torch.int16).tolist()


def test_a_master_that_moves_less_than_the_wire_shows_sends_nothing() -> None:
    spec = TensorSpec(name="master", shape=(64, 8), dtype="float32")
    plan = plan_of(spec, dtypes={"master": "bfloat16"})
    (message,) = plan.outgoing(0)
    old = torch.randn(64, 8)
    base = Base()
    base.advance(1, local({"master": old}), None, [plan])
    assert base.shards["master"].pieces[0][1].dtype == torch.bfloat16
    # What is kept, and what comparing takes: two messages, a byte for each word, eight for each of a quarter of them.
    assert changes_bytes(plan, 0) == (base.nbytes, 2 * message.nbytes + 512 + 8 * 128)
    assert base.nbytes == 2 * old.numel()
    on_the_wire = old.bfloat16().float()
    base.advance(2, local({"master": on_the_wire}), None, [plan])
    moved = on_the_wire * (1 + 2**-12)
    assert not torch.equal(moved, on_the_wire)
    assert encode(Messages(plan, []), message, local({"master": moved}), base.shards, Scratch()).head.nbytes == 0
    moved[3, 5] *= 2
    assert encode(Messages(plan, []), message, local({"master": moved}), base.shards, Scratch()).positions.tolist() == [
        29
    ]


@pytest.mark.parametrize(
    ("changed", "encoding"),
    [(0, Encoding.INDEX), (40, Encoding.INDEX), (200, Encoding.MASK), (410, Encoding.WHOLE)],
)
def test_a_message_takes_the_shortest_encoding_and_goes_whole_above_a_density(changed: int, encoding: Encoding) -> None:
    plan = plan_of(TensorSpec(name="up", shape=(4096,)))
    (message,) = plan.outgoing(0)
    old = torch.zeros(4096, dtype=torch.bfloat16)
    new = old.clone()
    new[torch.randperm(4096)[:changed]] = 1.0
    with patch.dict(WHOLE_ABOVE, cpu=0.1):
        changes = encode(Messages(plan, []), message, local({"up": new}), local({"up": old}), Scratch())
    assert changes.head.encoding is encoding
    sizes = {way: body_bytes(message, way, changed) for way in Encoding}
    assert changes.head.nbytes == (sizes[encoding] if encoding is Encoding.WHOLE else min(sizes.values()))
    parameters = {"up": old.clone()}
    over_the_wire(plan, changes, parameters)
    assert torch.equal(parameters["up"], new)


def test_what_lies_between_tensors_never_counts_as_changed() -> None:
    """Scratch memory is used again, and messages have gaps of other lengths at other places."""
    plan = plan_of(*(TensorSpec(name=f"t{i}", shape=(1 + i,)) for i in range(7)))
    (message,) = plan.outgoing(0)
    state = {f"t{i}": torch.ones(1 + i, dtype=torch.bfloat16) for i in range(7)}
    scratch = Scratch()
    for buffer, value in zip(scratch.take(message.nbytes, torch.device("cpu")), (1, 2), strict=True):
        buffer.fill_(value)
    changes = encode(Messages(plan, []), message, local(state), local(state), scratch)
    assert (changes.changed, changes.compared) == (0, 28)


def test_a_message_of_several_types_is_compared_in_words_of_the_smallest() -> None:
    plan = plan_of(TensorSpec(name="a", shape=(5,), dtype="float32"), TensorSpec(name="b", shape=(3,)))
    (message,) = plan.outgoing(0)
    assert word_bytes(message) == 2
    old = {"a": torch.zeros(5), "b": torch.zeros(3, dtype=torch.bfloat16)}
    new = {"a": torch.tensor([0.0, 1.1, 0, 0, 0]), "b": torch.tensor([0, 0, 2.0]).bfloat16()}
    parameters = {name: tensor.clone() for name, tensor in old.items()}
    over_the_wire(plan, encode(Messages(plan, []), message, local(new), local(old), Scratch()), parameters)
    assert all(torch.equal(parameters[name], new[name]) for name in new)


@pytest.mark.parametrize("head", [(3, 0, 0), (1, 5, 33), (1, -1, 0), (0, 4096, 4), (2, 5000, 10512), (1, 0, 32)])
def test_a_head_that_cannot_be_the_messages_is_refused(head: tuple[int, int, int]) -> None:
    (message,) = plan_of(TensorSpec(name="up", shape=(4096,))).outgoing(0)
    assert words(message) == 4096
    with pytest.raises(TransferError, match="do not describe a message of 8192 bytes"):
        Head.read(torch.tensor([*head, 0]).view(torch.uint8), message)


@pytest.mark.parametrize(
    ("positions", "text"),
    [
        ([5, 4], "out of order"),
        ([4, 4], "out of order"),
        ([-1, 4], "outside"),
        ([4, 9], "outside"),
        ([4, 16], "outside"),
    ],
)
def test_changes_outside_of_the_tensors_are_refused_and_write_nothing(positions: list[int], text: str) -> None:
    """The second tensor is the ninth word; between the two lies nothing."""
    plan = plan_of(TensorSpec(name="a", shape=(5,)), TensorSpec(name="b", shape=(1,)))
    (message,) = plan.outgoing(0)
    head = Head(encoding=Encoding.INDEX, count=2, nbytes=body_bytes(message, Encoding.INDEX, 2))
    body = torch.zeros(head.nbytes, dtype=torch.uint8)
    body[:8].view(torch.int32).copy_(torch.tensor(positions))
    body[16:].fill_(1)
    parameters = {name: torch.zeros(size, dtype=torch.bfloat16) for name, size in (("a", 5), ("b", 1))}
    with pytest.raises(TransferError, match=text):
        apply(Messages(plan, []), message, head, body, parameters)
    assert not any(tensor.any() for tensor in parameters.values())


def test_a_base_follows_only_what_was_committed_and_only_those_tensors() -> None:
    plan = plan_of(TensorSpec(name="a", shape=(4,)), TensorSpec(name="b", shape=(4,)))
    version = {n: {name: torch.full((4,), float(n)).bfloat16() for name in "ab"} for n in (1, 2)}
    base = Base()
    base.advance(1, local(version[1]), None, [plan])
    base.advance(2, local(version[2]), frozenset("b"), [plan])
    assert (base.version, *(base.shards[name].at(Box((0,), (1,))) for name in "ab")) == (2, 1.0, 2.0)
    base.clear()
    assert (base.version, base.nbytes) == (None, 0)


def test_a_wrong_base_changes_the_digest() -> None:
    """A worker that holds another version than the sender believes must not commit what that gives."""
    plan = plan_of(TensorSpec(name="a", shape=(512,)))
    (message,) = plan.incoming(Receiver(engine=0, rank=0))
    old = torch.randn(512).bfloat16()
    new = old.clone()
    new[7] += 1
    changes = encode(Messages(plan, []), message, local({"a": new}), local({"a": old}), Scratch())
    right, wrong = {"a": old.clone()}, {"a": old.clone()}
    wrong["a"][400] *= 2
    for parameters in (right, wrong):
        over_the_wire(plan, changes, parameters)
    sent = int(digest_sent(plan, message, local({"a": new})))
    assert sent == int(digest_received(plan, message, right))
    assert sent != int(digest_received(plan, message, wrong))
    whole = torch.empty(message.nbytes, dtype=torch.uint8)
    whole.view(torch.bfloat16).copy_(new)
    unpack(message, whole, wrong)
    assert sent == int(digest_received(plan, message, wrong))


@given(st.lists(st.booleans(), max_size=100))
def test_bits_are_packed_on_a_gpu_as_on_a_cpu(found: list[bool]) -> None:
    mask = torch.tensor([*found, *[False] * (-len(found) % 8)], dtype=torch.bool)
    positions = mask.nonzero().view(-1)
    assert torch.equal(packed(mask), mask_of(positions, len(found)))
    assert torch.equal(unpacked(packed(mask)).to(torch.bool), mask)
    assert torch.equal(positions_of(packed(mask), len(found)), positions)

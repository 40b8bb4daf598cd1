"""Messages that are read where they lie: every kind of region, memory that moves, ends that are lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest
import torch

from launcher.bridge.codec.pack import pack
from launcher.bridge.plan import Receiver
from launcher.bridge.transport.base import MemoryRegion, Transfer
from launcher.bridge.transport.mapped_sender import SLOTS, MappedSender
from launcher.bridge.transport.regions import LARGE_BYTES, region_of, split_into_regions
from launcher.common.errors import TransferError
from tests.integration.bridge.host_memory import ExportedHostMemory, HostAllocation, connected
from tests.integration.bridge.transfer_case import TransferCase

DEADLINE_S = 30.0


def soon() -> float:
    return time.monotonic() + DEADLINE_S


def region(tensor: torch.Tensor) -> MemoryRegion:
    found = region_of(tensor, "uint8")
    assert found is not None
    return found


def filled(memory: ExportedHostMemory, nbytes: int, seed: int) -> HostAllocation:
    made = memory.make(nbytes)
    made.content.copy_((torch.arange(nbytes) * 131 + seed * 29).to(torch.uint8))
    return made


def finish(transfer: Transfer) -> torch.Tensor:
    came = transfer.poll(soon()).clone()
    transfer.release()
    return came


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((1, 1024, 1024), (1, 1024, 1024)),
        ((16, 64, 64), (1, 1024, 1024)),
        ((16, 64, 80), (1, 1024, 1024)),
        ((1, 1024, 1024), (16, 64, 96)),
        ((16, 64, 80), (16, 64, 96)),
        ((16, 64, 80), (32, 32, 48)),
        ((8, 128, 200), (16, 64, 96)),
    ],
)
def test_rows_come_in_order_wherever_they_lie(source: tuple[int, int, int], target: tuple[int, int, int]) -> None:
    sender, exported, receiver, _mapped = connected()
    there = filled(exported, 4096, 1).content
    here = torch.zeros(4096, dtype=torch.uint8)
    of, to = (
        tensor.as_strided((rows, width), (pitch, 1), 13)
        for tensor, (rows, width, pitch) in ((there, source), (here, target))
    )
    coming = receiver.post_recv_regions([region(to)])
    sent = sender.post_send_regions([region(of)], [there])
    assert finish(coming).numel() == 0
    sent.poll(soon())
    assert torch.equal(to.reshape(-1), of.reshape(-1))
    written = torch.zeros(4096, dtype=torch.bool).as_strided(to.shape, to.stride(), 13)
    written.fill_(True)
    untouched = ~written.as_strided((4096,), (1,), 0)
    assert not here[untouched].any()
    sender.abort()
    receiver.abort()


@pytest.mark.parametrize("stages", [True, False], ids=["peer", "ipc"])
def test_packed_and_mapped_regions_are_one_message(stages: bool) -> None:
    sender, exported, receiver, mapped = connected(stages=stages)
    source = filled(exported, 8192, 2).content
    for turn in range(3 * SLOTS):
        target = torch.zeros(8192, dtype=torch.uint8)
        coming = receiver.post_recv_regions([region(target), 100])
        buffer = sender.buffer(100, soon()).fill_(turn)
        sender.post_send_regions([region(source), region(buffer)], [source])
        came = finish(coming)
        assert came.shape == (100,)
        assert bool((came == turn).all())
        assert torch.equal(target, source)
    assert mapped.mapped == 1 + 1 + SLOTS - 1  # first slot, source, other slots
    sender.abort()
    receiver.abort()


def test_memory_that_is_freed_and_allocated_between_versions_is_mapped_anew() -> None:
    """The mapping of what is gone is ended, and nothing of it is ever read again."""
    sender, exported, receiver, mapped = connected()
    made = filled(exported, 8192, 0)
    for version in range(1, 6):
        exported.destroy(made)
        made = filled(exported, 8192, version)
        target = torch.zeros(8192, dtype=torch.uint8)
        coming = receiver.post_recv_regions([region(target)])
        sender.post_send_regions([region(made.content)], [made.content])
        finish(coming)
        assert torch.equal(target, made.content)
        assert len(mapped.mappings) == 2  # The first slot, and what is there now.
    sender.abort()
    receiver.abort()


def test_what_a_message_is_read_from_is_held_until_it_is_read() -> None:
    sender, exported, receiver, mapped = connected()
    content = filled(exported, 8192, 3).content
    mapped.may_copy.clear()
    kept = torch.zeros(8)
    target = torch.zeros(8192, dtype=torch.uint8)
    coming = receiver.post_recv_regions([region(target)])
    sent = sender.post_send_regions([region(content)], [kept])
    with pytest.raises(TransferError, match="did not complete"):
        sent.poll(time.monotonic() + 0.1)
    assert owners(sender) == [kept.data_ptr()]
    mapped.may_copy.set()
    finish(coming)
    sent.poll(soon())
    assert owners(sender) == []
    sender.abort()
    receiver.abort()


def owners(sender: MappedSender) -> list[int]:
    return [tensor.data_ptr() for kept in sender._kept for tensor in kept]


def test_a_sender_that_leaves_holds_memory_until_the_receiver_reads_no_more() -> None:
    sender, exported, receiver, mapped = connected()
    content = filled(exported, 8192, 3).content
    mapped.may_copy.clear()
    target = torch.zeros(8192, dtype=torch.uint8)
    coming = receiver.post_recv_regions([region(target)])
    sender.post_send_regions([region(content)], [content])
    with pytest.raises(TransferError, match="did not complete"):
        coming.poll(time.monotonic() + 0.1)
    sender.abort()
    assert owners(sender) == [content.data_ptr()]
    assert exported.freed == 0
    mapped.may_copy.set()
    receiver.abort()
    assert mapped.mappings == {}
    eventually(lambda: owners(sender) == [] and exported.freed == 1)


def eventually(holds: object) -> None:
    assert callable(holds)
    deadline = soon()
    while not holds():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def test_a_slot_grows_with_what_is_packed_and_the_smaller_one_is_freed() -> None:
    sender, exported, receiver, mapped = connected()
    sizes: Sequence[int] = [100, 5 << 20, 100, 9 << 20, 0, 5 << 20, 3 << 20, 9 << 20, 1]
    for number, nbytes in enumerate(sizes):
        coming = receiver.post_recv(nbytes)
        buffer = sender.buffer(nbytes, soon())
        assert buffer.numel() == nbytes
        sender.post_send(buffer.fill_(number + 1))
        came = finish(coming)
        assert came.shape == (nbytes,)
        assert bool((came == number + 1).all())
    assert exported.freed > 0
    assert len(mapped.mappings) == SLOTS
    sender.abort()
    receiver.abort()


def test_memory_that_cannot_be_mapped_is_not_reached() -> None:
    sender, exported, receiver, _mapped = connected()
    private = exported.make(4096, is_private=True).content
    assert not sender.reaches(region(private))
    assert not sender.reaches(region(torch.zeros(64, dtype=torch.uint8)))
    assert sender.reaches(region(exported.make(4096).content))
    sender.abort()
    receiver.abort()


def test_other_sizes_than_were_expected_are_an_error() -> None:
    sender, exported, receiver, _mapped = connected()
    content = filled(exported, 4096, 1).content
    coming = receiver.post_recv_regions([100])
    sender.post_send_regions([region(content)], [content])
    with pytest.raises(TransferError, match=r"\[4096\] bytes come instead of \[100\]"):
        coming.poll(soon())
    sender.abort()
    receiver.abort()


def test_both_ends_split_alike_and_cast_or_turned_segments_are_packed() -> None:
    case = TransferCase(trainers=1, workers=1, round_bytes=1 << 20)
    (message, *_) = case.plan.outgoing(0)
    (same, *_) = case.plan.incoming(Receiver(engine=0, rank=0))
    parts, again = split_into_regions(case.plan, message), split_into_regions(case.plan, same)
    assert parts == again
    assert parts.packed is not None
    assert {"master", "turned", "widened"} <= {segment.parameter for segment in parts.packed.segments}
    names = [*(s.source for s in parts.in_place), *(s.source for s in parts.packed.segments)]
    assert sorted(names) == sorted(segment.source for segment in message.segments)
    shards = case.shards(case.state(1), 0)
    buffer = torch.zeros(parts.packed.nbytes, dtype=torch.uint8)
    pack(parts.packed, shards, buffer)
    assert buffer.any()


def test_large_segments_are_regions_and_many_small_ones_are_packed() -> None:
    case = TransferCase(trainers=1, workers=1, model="large", round_bytes=5_000_000)
    (message, *_) = case.plan.outgoing(0)
    parts = split_into_regions(case.plan, message)
    assert all(segment.nbytes >= LARGE_BYTES for segment in parts.in_place if len(parts.in_place) > 16)

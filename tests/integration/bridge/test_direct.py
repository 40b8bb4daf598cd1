"""Large pieces go from where they are, and come to where they belong, as if they had been packed and unpacked."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
import torch
from torch import distributed as dist

from launcher.bridge.codec.local import LocalTensor
from launcher.bridge.codec.pack import pack, unpack
from launcher.bridge.plan import Message
from launcher.bridge.transport.base import DirectRecvWire, DirectSendWire, Meeting, Pair
from launcher.bridge.transport.gloo import connect_receiver, connect_sender
from launcher.bridge.transport.regions import LARGE_BYTES, received_into, sent_from, split_large
from tests.integration.bridge.peer_process import Pool
from tests.integration.bridge.test_transfer_matrix import check_digests, contents_of
from tests.integration.bridge.transfer_case import Shards, TransferCase

NBYTES = 1 << 20


def large(trainers: int, workers: int, placement: str, round_bytes: int) -> TransferCase:
    """Tensors of 1 MiB each."""
    return TransferCase(trainers=trainers, workers=workers, placement=placement, model="large", round_bytes=round_bytes)


def always(_message: Message) -> bool:
    return True


@pytest.mark.parametrize("placement", ["fsdp", "tp"])
@pytest.mark.parametrize("round_bytes", [1 << 18, 3_000_000])
def test_pieces_are_the_message(placement: str, round_bytes: int) -> None:
    case = large(2, 2, placement, round_bytes)
    state = case.state(1)
    for rank in range(2):
        shards = case.shards(state, rank)
        for message in case.plan.outgoing(rank):
            whole = torch.zeros(message.nbytes, dtype=torch.uint8)
            pack(message, shards, whole)
            parts, begin = list(split_large([message], always)), 0
            for part in parts:
                buffer = torch.zeros(part.nbytes, dtype=torch.uint8)
                pack(part, shards, buffer)
                assert torch.equal(buffer, whole[begin : begin + part.nbytes])
                begin += part.nbytes
                content = sent_from(part, shards)
                assert (content is not None) == (part.nbytes >= LARGE_BYTES)
                assert content is None or torch.equal(content, buffer)
            assert begin == message.nbytes
            assert [s.source for part in parts for s in part.segments] == [s.source for s in message.segments]


def test_what_is_received_into_is_what_would_be_unpacked_to() -> None:
    case = large(1, 1, "plain", 5_000_000)
    shards = case.shards(case.state(1), 0)
    (message, *_) = case.plan.outgoing(0)
    parts = list(split_large([message], always))
    assert len(parts) > 2
    for part in parts:
        there = {p.name: torch.zeros(p.shape, dtype=torch.float32) for p in case.needs(0)}
        here = {name: tensor.clone() for name, tensor in there.items()}
        buffer = torch.zeros(part.nbytes, dtype=torch.uint8)
        pack(part, shards, buffer)
        unpack(part, buffer, there)
        target = received_into(part, here)
        assert (target is not None) == (part.nbytes >= LARGE_BYTES)
        if target is not None:
            target.copy_(buffer)
            assert all(torch.equal(here[name].view(torch.int32), there[name].view(torch.int32)) for name in here)


def test_what_is_cast_turned_or_strided_is_packed() -> None:
    case = large(1, 1, "plain", 5_000_000)
    (message, *_) = case.plan.outgoing(0)
    part = next(part for part in split_large([message], always) if part.nbytes >= LARGE_BYTES)
    (segment,) = part.segments

    def held(tensor: torch.Tensor) -> Shards:
        return {segment.source: LocalTensor.whole(tensor)}

    assert sent_from(part, held(torch.zeros(4096, 64))) is not None
    assert sent_from(part, held(torch.zeros(4096, 64).double())) is None
    assert sent_from(part, held(torch.zeros(64, 4096).T)) is None
    assert sent_from(part, held(torch.zeros(4096, 128)[:, ::2])) is None
    assert received_into(part, {segment.parameter: torch.zeros(4096, 64)}) is not None
    assert received_into(part, {segment.parameter: torch.zeros(4096, 128)[:, ::2]}) is None
    assert received_into(part, {segment.parameter: torch.zeros(4096, 64).double()}) is None


@pytest.mark.parametrize(("trainers", "workers", "placement"), [(1, 1, "plain"), (3, 2, "fsdp"), (2, 2, "tp")])
def test_every_worker_gets_its_slices(pool: Pool, trainers: int, workers: int, placement: str) -> None:
    case = large(trainers, workers, placement, 3_000_000)
    replica = pool.join(case)
    for version in (1, 2):
        sent, received = replica.publish(version)
        check_digests(sent, received)
        assert replica.contents() == contents_of(case, case.state(version))
    part = ["large.03", "large.40"]
    check_digests(*replica.publish(3, part))
    new = case.state(3)
    assert replica.contents() == contents_of(case, {**case.state(2), **{name: new[name] for name in part}})
    replica.close()


def test_changes_of_large_pieces_follow_and_precede_whole_ones(pool: Pool) -> None:
    """Changes go as messages of their rounds, uncut, over the same wire."""
    case = large(2, 1, "fsdp", 3_000_000)
    replica = pool.join(case)
    for version, base in ((1, None), (2, 1), (3, None)):
        check_digests(*replica.publish(version, base=base, density=0.01))
        assert replica.contents() == contents_of(case, case.state(version, 0.01))
    replica.close()


def test_a_wire_does_not_lend_its_callers_memory() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=30), wait_for_workers=False)
    meeting = Meeting(group="direct", secret="s", store=f"127.0.0.1:{store.port}", address="127.0.0.1", timeout_s=30.0)
    pair, found = Pair(sender=0, receiver=0), []
    joining = threading.Thread(target=lambda: found.append(connect_sender(meeting, pair)))
    joining.start()
    receiver = connect_receiver(meeting, pair)
    joining.join()
    (sender,) = found
    assert isinstance(sender, DirectSendWire)
    assert isinstance(receiver, DirectRecvWire)
    deadline = time.monotonic() + 30.0
    content, target = torch.arange(NBYTES).to(torch.uint8), torch.zeros(NBYTES, dtype=torch.uint8)
    coming = receiver.post_recv_into(target)
    sender.post_send_from(content).poll(deadline)
    assert coming.poll(deadline).data_ptr() == target.data_ptr()
    coming.release()
    assert torch.equal(target, content)
    lent = receiver.post_recv(NBYTES)
    buffer = sender.buffer(NBYTES, deadline).fill_(9)
    sender.post_send(buffer).poll(deadline)
    assert bool((lent.poll(deadline) == 9).all())
    assert torch.equal(content, torch.arange(NBYTES).to(torch.uint8))
    assert torch.equal(target, content)
    sender.abort()
    receiver.abort()

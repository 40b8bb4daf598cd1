"""Trainer ranks and workers of every number and placement: real processes, real groups, byte for byte."""

from __future__ import annotations

import pytest
import torch

from tests.integration.bridge.peer_process import Answer, Pool, Replica
from tests.integration.bridge.transfer_case import TransferCase
from tests.integration.bridge.transfer_process import content

MASK = (1 << 64) - 1
PART = ["gate", "embed", "turned", "master"]


def contents_of(case: TransferCase, whole: dict[str, torch.Tensor]) -> list[Answer]:
    """What each worker must hold."""
    return [
        {name: content(tensor) for name, tensor in case.expected(whole, rank).items()} for rank in range(case.workers)
    ]


def check_digests(sent: list[Answer], received: list[Answer]) -> None:
    """What all trainer ranks sent to a worker adds up to what it received."""
    sums = [sum(column) & MASK for column in zip(*(answer["digests"] for answer in sent), strict=True)]
    assert sums == [status["digest"] for status in received]


def bytes_needed(case: TransferCase, only: list[str] | None = None) -> int:
    """All that is sent, with the padding between segments."""
    sizes = (
        -(-segment.nbytes // 16) * 16
        for rank in range(case.trainers)
        for message in case.plan.outgoing(rank)
        for segment in message.segments
        if only is None or segment.source in only
    )
    return sum(sizes)


# One rank holds everything, however it is placed.
TRAINERS = [(1, "plain")] + [(ranks, how) for ranks in (2, 3, 4) for how in ("plain", "fsdp", "tp", "fsdp+tp")]


@pytest.mark.parametrize(("trainers", "placement"), TRAINERS)
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.seed("D1", "D17")
def test_every_worker_gets_exactly_its_slice_of_every_version(
    pool: Pool, trainers: int, workers: int, placement: str
) -> None:
    case = TransferCase(trainers=trainers, workers=workers, placement=placement)
    assert case.plan.rounds >= 5
    replica = pool.join(case)
    refused = replica.prepare(1, PART)
    assert all("no whole version has come before" in answer["error"] for answer in refused)
    for version in (1, 2):
        sent, received = replica.publish(version)
        check_digests(sent, received)
        assert sum(answer["bytes"] for answer in sent) == bytes_needed(case)
        assert replica.contents() == contents_of(case, case.state(version))
    sent, received = replica.publish(3, PART)
    check_digests(sent, received)
    assert sum(answer["bytes"] for answer in sent) == bytes_needed(case, PART)
    new = case.state(3)
    assert replica.contents() == contents_of(case, {**case.state(2), **{name: new[name] for name in PART}})
    replica.close()


@pytest.mark.seed("D19")
def test_no_rank_sends_more_than_its_share(pool: Pool) -> None:
    """Four FSDP ranks hold a quarter each and send a quarter each, not rank 0 everything."""
    case = TransferCase(trainers=4, workers=2, placement="fsdp")
    replica = pool.join(case)
    sent, _received = replica.publish(1)
    total = sum(answer["bytes"] for answer in sent)
    assert max(answer["bytes"] for answer in sent) < 0.4 * total
    replica.close()


def test_a_part_after_a_version_that_was_dropped_is_refused(pool: Pool) -> None:
    """The shadow then holds a version that the engine does not serve, and a part on top of it would be a mix."""
    case = TransferCase(trainers=1, workers=1)
    replica = pool.join(case)
    replica.publish(1)
    assert replica.prepare(2) == [{}]
    replica.send(2)
    assert replica.statuses()[0]["state"] == "received"
    assert replica.workers[0].call("drop", group=replica.group) == {}
    assert "no whole version has come before" in replica.prepare(3, PART)[0]["error"]
    assert replica.contents() == contents_of(case, case.state(1))
    sent, received = replica.publish(3)
    check_digests(sent, received)
    assert replica.contents() == contents_of(case, case.state(3))
    replica.close()


def test_one_trainer_feeds_two_replicas_of_different_sizes(pool: Pool) -> None:
    small, large = (
        TransferCase(trainers=2, workers=1, placement="tp"),
        TransferCase(trainers=2, workers=2, placement="tp"),
    )
    first = pool.join(small)
    second: Replica = pool.join(large, senders=first.senders, besides=first.workers)
    for version in (1, 2):
        for case, replica in ((small, first), (large, second)):
            check_digests(*replica.publish(version))
            assert replica.contents() == contents_of(case, case.state(version))
    first.close()
    second.close()

"""Updates that carry only what has changed: between real processes, over every transport of a CPU, with deaths."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.bridge.peer_process import Answer, Pool, call_all
from tests.integration.bridge.test_transfer_matrix import check_digests
from tests.integration.bridge.transfer_case import TransferCase
from tests.integration.bridge.transfer_process import content

DENSITY = 0.01
PART = ["gate", "embed", "turned", "master"]
SHORT_S = 3.0
MASK = (1 << 64) - 1


def contents_of(case: TransferCase, version: int) -> list[Answer]:
    """What each worker must hold."""
    whole = case.state(version, DENSITY)
    return [
        {name: content(tensor) for name, tensor in case.expected(whole, rank).items()} for rank in range(case.workers)
    ]


@pytest.fixture(params=["gloo", "shm", "filesystem"])
def transport(request: pytest.FixtureRequest, pool: Pool) -> Iterator[Pool]:
    """The same processes, joined in another way."""
    before, pool.transport = pool.transport, str(request.param)
    yield pool
    pool.transport = before


def test_changes_arrive_over_every_transport_and_a_part_of_a_version_too(transport: Pool, tmp_path: Path) -> None:
    case = TransferCase(trainers=2, workers=2, placement="fsdp+tp", round_bytes=4000)
    replica = transport.join(case, directory=str(tmp_path))
    sent, _received = replica.publish(1, density=DENSITY)
    all_bytes = sum(answer["bytes"] for answer in sent)
    for version in (2, 3):
        sent, received = replica.publish(version, base=version - 1, density=DENSITY)
        check_digests(sent, received)
        assert replica.contents() == contents_of(case, version)
        assert 0 < sum(answer["changed"] for answer in sent) < 3 * DENSITY * sum(a["compared"] for a in sent)
        assert sum(answer["bytes"] for answer in sent) < all_bytes / 4
    # Some tensors of version 4, and then the rest of it as changes since: as much as if nothing had come between.
    check_digests(*replica.publish(4, PART, base=3, density=DENSITY))
    check_digests(*replica.publish(5, base=4, density=DENSITY))
    assert replica.contents() == contents_of(case, 5)
    replica.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_base_advances_only_with_a_commit_whoever_dies(pool: Pool, number: signal.Signals) -> None:
    case = TransferCase(trainers=1, workers=1)
    first = pool.join(case, hold="down_proj")
    other = pool.join(case, senders=first.senders, besides=first.workers)
    (sender,), (worker,), (survivor,) = first.senders, first.workers, other.workers
    other.publish(1, density=DENSITY)
    # The first replica is lost on the way; the survivor has received version 2 whole, but nobody has committed it.
    first.prepare(1)
    first.start_send(1, timeout_s=SHORT_S, density=DENSITY)
    assert worker.next_answer() == {"held": "down_proj"}
    worker.signal(number)
    sender.next_answer()
    assert other.prepare(2, base=1) == [{}]
    other.send(2, base=1, density=DENSITY)
    assert other.statuses()[0]["state"] == "received"
    assert survivor.call("drop", group=other.group) == {}
    assert other.contents() == contents_of(case, 1)
    # Its shadow is no committed version now: it says so, and gets everything.
    assert "this worker holds None" in other.prepare(3, base=1)[0]["error"]
    sent, received = other.publish(3, density=DENSITY)
    check_digests(sent, received)
    all_bytes = sent[0]["bytes"]
    # Who comes back has nothing that changes could be applied to.
    successor = pool.join(case, senders=[sender], besides=[survivor, worker])
    assert "this worker holds None" in successor.prepare(3, base=1)[0]["error"]
    check_digests(*successor.publish(3, density=DENSITY))
    for replica in (other, successor):
        assert replica.prepare(4, base=3) == [{}]
        sent, received = replica.send(4, base=3, density=DENSITY), replica.statuses()
        check_digests(sent, received)
        assert sent[0]["bytes"] < all_bytes / 2
        assert replica.commit(4) == [{}]
        assert replica.contents() == contents_of(case, 4)
    successor.close()
    other.close()


def test_a_sender_that_dies_between_changes_leaves_what_was_committed(pool: Pool) -> None:
    case = TransferCase(trainers=2, workers=1)
    replica = pool.join(case, timeout_s=5.0)
    replica.publish(1, density=DENSITY)
    replica.prepare(2, base=1)
    survivor, lost = replica.senders
    words = {"group": replica.group, "version": 2, "base": 1, "density": DENSITY}
    survivor.send_command("send", timeout_s=SHORT_S, **words)
    lost.send_command("send", timeout_s=30.0, hold="down", **words)
    assert lost.next_answer() == {"held": "down"}
    lost.end()
    assert "receiving round" in replica.statuses()[0]["error"]
    survivor.next_answer()
    assert "has not been received" in replica.commit(2)[0]["error"]
    assert replica.contents() == contents_of(case, 1)
    call_all([survivor, *replica.workers], "close", group=replica.group)


def test_a_worker_with_another_version_than_the_sender_believes_is_found_out_and_gets_everything(pool: Pool) -> None:
    case = TransferCase(trainers=1, workers=2)
    replica = pool.join(case)
    replica.publish(1, density=DENSITY)
    # The sender takes version 2 for committed, which never came.
    replica.send(2, only=["no such tensor"], density=DENSITY)
    replica.senders[0].call("advance", group=replica.group, version=2)
    assert replica.prepare(3, base=1) == [{}, {}]
    (sent,), received = replica.send(3, base=1, density=DENSITY), replica.statuses()
    assert all(a & MASK != b["digest"] for a, b in zip(sent["digests"], received, strict=True))
    call_all(replica.workers, "drop", group=replica.group)
    assert replica.contents() == contents_of(case, 1)
    check_digests(*replica.publish(3, density=DENSITY))
    assert replica.contents() == contents_of(case, 3)
    check_digests(*replica.publish(4, base=3, density=DENSITY))
    assert replica.contents() == contents_of(case, 4)
    replica.close()

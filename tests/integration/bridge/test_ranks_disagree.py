"""Trainer ranks that disagree: told on every rank, with names and values, soon; and the next correct call works."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from launcher.bridge.trainer.api import Bridge
from tests.integration.bridge.plain_replica import PlainReplica, serving
from tests.integration.bridge.rank_process import RankGroup, errors, rank_group

TOKEN = "a token of the tests"
ROWS, COLUMNS = 48, 64
SOON_S = 30.0
"""What is told within a second or two, on a machine that is busy with other tests."""


def model(version: int) -> nn.Module:
    """Two matrices; every element is the version."""
    module = nn.Module()
    for name in ("a", "b"):
        module.register_parameter(name, nn.Parameter(torch.full((ROWS, COLUMNS), float(version))))
    return module


def publish(bridge: Bridge, rank: int, version: int, odd: str = "") -> int:
    """Publishes; rank 1 differs in one thing."""
    module = model(version)
    if rank == 1 and odd == "extra":
        module.register_parameter("extra", nn.Parameter(torch.ones(3)))
    if rank == 1 and odd == "type":
        module.b = nn.Parameter(module.b.detach().half())
    if rank == 1 and odd == "shape":
        module.b = nn.Parameter(torch.ones(ROWS + 1, COLUMNS))
    if rank == 1 and odd == "value":
        with torch.no_grad():
            module.b[3, 5] += 1
    if rank == 1 and odd == "version":
        version += 1
    return bridge.publish(module, version).replicas


def publish_or_rejoin(bridge: Bridge, rank: int, version: int) -> int:
    """Rank 0 rejoins, the others publish."""
    return bridge.rejoin(model(version - 1)) if rank == 0 else publish(bridge, rank, version)


def new_replica() -> PlainReplica:
    """Has no version yet."""
    return PlainReplica({name: torch.zeros(ROWS, COLUMNS) for name in ("a", "b")}, {})


@pytest.fixture(scope="module")
def replica() -> PlainReplica:
    return new_replica()


@pytest.fixture(scope="module")
def ranks(replica: PlainReplica) -> Iterator[RankGroup]:
    with serving(replica, TOKEN) as url, rank_group(3, url, TOKEN, rank_timeout_s=3.0) as found:
        yield found


def works(ranks: RankGroup, replica: PlainReplica, version: int) -> None:
    assert [answer.get("value") for answer in ranks.run(publish, version)] == [1, 1, 1]
    assert {float(value) for tensor in replica.live.values() for value in tensor.unique()} == {float(version)}


@pytest.mark.parametrize(
    ("odd", "texts"),
    [
        ("type", ["`b`", "type", "float32 on ranks 0, 2", "float16 on rank 1"]),
        ("shape", ["`b`", "shape", "(48, 64) on ranks 0, 2", "(49, 64) on rank 1"]),
        ("extra", ["`extra`", "held by trainer rank 1 of 3 only"]),
        ("version", []),
    ],
)
def test_what_one_rank_has_otherwise_is_named_on_every_rank(
    ranks: RankGroup, replica: PlainReplica, odd: str, texts: list[str]
) -> None:
    base = (replica_version(replica) + 10) // 10 * 10
    if odd == "version":
        texts = [f"`publish(version={base})` on ranks 0, 2", f"`publish(version={base + 1})` on rank 1"]
    answers = ranks.run(publish, base, odd)
    for error in errors(answers):
        assert all(text in error for text in texts), error
    assert max(answer["seconds"] for answer in answers) < SOON_S
    works(ranks, replica, base + 5)


def replica_version(replica: PlainReplica) -> int:
    return int(replica.live["a"][0, 0])


def test_values_that_should_be_the_same_are_compared_once() -> None:
    replica = new_replica()
    with serving(replica, TOKEN) as url, rank_group(3, url, TOKEN) as fresh:
        texts = ["`b` should be the same on trainer ranks 0-2", "on rank 0 and", "on rank 1 (rank 1 of 3 differs)"]
        for error in errors(fresh.run(publish, 1, "value")):
            assert all(text in error for text in texts), error
        works(fresh, replica, 2)


@pytest.mark.parametrize(
    ("alone", "named"), [([0], "ranks 1-2"), ([1], "ranks 0, 2"), ([0, 2], "rank 1"), ([1, 2], "rank 0")]
)
def test_ranks_that_do_not_come_are_named_and_the_next_call_works(
    ranks: RankGroup, replica: PlainReplica, alone: list[int], named: str
) -> None:
    base = (replica_version(replica) + 10) // 10 * 10
    answers = ranks.run(publish, base, ranks=alone)
    for error in errors(answers):
        assert f"`publish(version={base})`: trainer {named} of 3 did not make this call within" in error, error
        assert "if rank == 0:" in error
    assert max(answer["seconds"] for answer in answers) < SOON_S
    works(ranks, replica, base + 5)


def test_ranks_that_make_different_calls_are_told_so(ranks: RankGroup, replica: PlainReplica) -> None:
    base = (replica_version(replica) + 10) // 10 * 10
    works(ranks, replica, base)
    for error in errors(ranks.run(publish_or_rejoin, base + 1)):
        assert f"`rejoin() at version {base}` on rank 0; `publish(version={base + 1})` on ranks 1-2" in error
    works(ranks, replica, base + 5)


def test_a_rank_that_has_closed_its_bridge_is_named_at_once() -> None:
    with serving(new_replica(), TOKEN) as url, rank_group(2, url, TOKEN, rank_timeout_s=300.0) as found:
        found.close(1)
        (answer,) = found.run(publish, 1, ranks=[0])
    assert "trainer rank 1 has closed its bridge" in errors([answer])[0]
    assert answer["seconds"] < SOON_S

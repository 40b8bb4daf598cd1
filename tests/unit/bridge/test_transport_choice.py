"""Which transport a pair gets, from where its two ends are, and what it gets when it cannot have that."""

from __future__ import annotations

import pytest

from launcher.bridge.transport.base import Pair
from launcher.bridge.transport.choose import CPU, TRANSPORTS, Place, choose, choose_all, joins
from launcher.common.errors import BridgeError

PAIR = Pair(sender=1, receiver=2)
HERE, THERE = 11, 22


@pytest.mark.parametrize(
    ("sender", "receiver", "ways"),
    [
        (Place(HERE, CPU), Place(HERE, CPU), ("shm", "gloo")),
        (Place(HERE, CPU), Place(THERE, CPU), ("gloo",)),
        (Place(HERE, 5), Place(HERE, CPU), ("shm", "gloo")),
        (Place(HERE, 5), Place(HERE, 6), ("peer", "nccl")),
        (Place(HERE, 5), Place(HERE, 5), ("ipc", "shm", "gloo")),
        (Place(HERE, 5), Place(THERE, 6), ("nccl",)),
        (Place(HERE, 5), Place(THERE, CPU), ("gloo",)),
    ],
)
def test_auto_takes_the_nearest_way_and_then_one_that_needs_less(
    sender: Place, receiver: Place, ways: tuple[str, ...]
) -> None:
    assert choose("auto", PAIR, sender, receiver) == ways
    # Whatever it falls back to can join the pair.
    assert all(joins(way, sender, receiver) for way in ways)
    # Both sides decide for themselves, with the ends in the same roles.
    assert choose_all("auto", [sender], 2, receiver) == [ways]


def test_each_pair_is_decided_by_itself() -> None:
    senders = [Place(HERE, 5), Place(HERE, 6), Place(THERE, 7)]
    assert choose_all("auto", senders, 0, Place(HERE, 6)) == [("peer", "nccl"), ("ipc", "shm", "gloo"), ("nccl",)]


@pytest.mark.parametrize("name", [name for name in TRANSPORTS if name != "auto"])
def test_a_transport_that_was_asked_for_is_never_replaced(name: str) -> None:
    sender, receiver = Place(HERE, 5), Place(HERE, 6)
    if joins(name, sender, receiver):
        assert choose(name, PAIR, sender, receiver) == (name,)
    else:
        with pytest.raises(BridgeError, match=r"cannot join trainer rank 1 and worker 2.*HINT"):
            choose(name, PAIR, sender, receiver)

"""Which replica gets its weights from the trainer and which from another replica."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launcher.bridge.negotiation import TrainerFacts
from launcher.bridge.plan.dtypes import ITEMSIZE
from launcher.bridge.plan.relay import choose_relays


def parents(facts: TrainerFacts, workers: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[int, int]:
    """For each replica that another one relays to, that one.

    The trainer feeds as many nodes as it has itself; further ones are fed by those, and on a node that several replicas
    share one feeds the next. Only replicas that need the same, rank by rank, relay to each other.

    Args:
        facts: the trainer's side.
        workers: what each replica's workers said, ``binding`` and ``location``, by replica.
    """
    trainers = sorted({location.node for location in facts.locations})
    found: dict[int, int] = {}
    for members in _alike(workers):
        nodes = [tuple(int(worker["location"][0]) for worker in workers[index]) for index in members]
        rounds = _bytes(facts) // (len(nodes[0]) * facts.round_bytes)
        relays = choose_relays(nodes, trainers, max(1, rounds))
        for place, index in enumerate(members):
            parent = relays.parent(place, 0)
            if parent is not None:
                found[index] = members[parent]
    return found


def levels(tree: Mapping[int, int]) -> Iterator[list[int]]:
    """The children in an order in which each comes after its parent, as many at a time as can be."""
    left = dict(tree)
    while left:
        ready = [child for child, parent in left.items() if parent not in left]
        assert ready, f"a circle: {left}"
        yield ready
        for child in ready:
            del left[child]


def _alike(workers: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[list[int]]:
    groups: list[list[int]] = []
    for index in sorted(workers):
        mine = [worker["binding"] for worker in workers[index]]
        for group in groups:
            if [worker["binding"] for worker in workers[group[0]]] == mine:
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def _bytes(facts: TrainerFacts) -> int:
    total = 0
    for entry in facts.manifest:
        size = ITEMSIZE[entry.dtype] if entry.alias_of is None else 0
        for length in entry.shape:
            size *= length
        total += size
    return total

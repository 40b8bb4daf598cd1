"""Which replica gets its weights from the trainer and which from another replica."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from launcher.bridge.plan.dtypes import ITEMSIZE
from launcher.bridge.plan.relay import choose_relays
from launcher.bridge.protocol import TrainerSpec, WorkerSpec


def parents(spec: TrainerSpec, workers: Mapping[int, Sequence[WorkerSpec]]) -> dict[int, int]:
    """For each replica that another one relays to, that one.

    The trainer feeds as many nodes as it has itself; further ones are fed by those, and on a node that several replicas
    share one feeds the next. Only replicas that need the same, rank by rank, relay to each other.

    Args:
        spec: the trainer's side.
        workers: of each replica, by its index.
    """
    trainers = sorted({location.node for location in spec.locations})
    found: dict[int, int] = {}
    for members in _alike(workers):
        nodes = [tuple(worker.location.node for worker in workers[index]) for index in members]
        rounds = _bytes(spec) // (len(nodes[0]) * spec.round_bytes)
        relays = choose_relays(nodes, trainers, max(1, rounds))
        for slot, index in enumerate(members):
            parent = relays.parent(slot, 0)
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


def root(parent_of: Mapping[int, int], index: int) -> int:
    """The replica that the trainer sends to and from which one gets its weights; itself if nobody relays to it."""
    while index in parent_of:
        index = parent_of[index]
    return index


def orphans(parent_of: Mapping[int, int], connected: Collection[int], failed: Collection[int]) -> dict[int, str]:
    """Replicas to which one relays, at any distance, that has failed or is not connected, with that reason."""
    found: dict[int, str] = {}
    while True:
        more = {
            index: f"Replica {parent}, which relays to replica {index}, failed."
            for index, parent in parent_of.items()
            if index not in failed and index not in found
            if parent not in connected or parent in failed or parent in found
        }
        if not more:
            return found
        found |= more


def _alike(workers: Mapping[int, Sequence[WorkerSpec]]) -> list[list[int]]:
    groups: list[list[int]] = []
    for index in sorted(workers):
        needed = [worker.weight_map for worker in workers[index]]
        for group in groups:
            if [worker.weight_map for worker in workers[group[0]]] == needed:
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def _bytes(spec: TrainerSpec) -> int:
    total = 0
    for entry in spec.manifest:
        size = ITEMSIZE[entry.dtype] if entry.alias_of is None else 0
        for length in entry.shape:
            size *= length
        total += size
    return total

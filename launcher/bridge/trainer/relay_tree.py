"""Which replica gets its weights from the trainer and which from another replica."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise

from launcher.bridge.plan.dtypes import ITEMSIZE
from launcher.bridge.protocol import TrainerSpec, WorkerSpec

Nodes = tuple[int, ...]


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
        for index, parent in zip(members, choose_parents(nodes, trainers, max(1, rounds)), strict=True):
            if parent is not None:
                found[index] = members[parent]
    return found


def choose_parents(replicas: Sequence[Nodes], trainer_nodes: Collection[int], rounds: int) -> list[int | None]:
    """For each of several replicas that require the same, which of them relays to it; None where the trainer sends.

    The trainer's nodes can send as fast as an equal number of nodes can receive. As many groups of nodes as that get
    the weights from the trainer; the others are below them. Replicas on the same nodes pass the weights along, so that
    the network carries them once. A replica on the trainer's own nodes is as near to it as to any other replica, and
    always gets them from the trainer.

    Args:
        replicas: the node of every rank of every replica.
        trainer_nodes: the nodes that hold the source.
        rounds: in which one replica's weights arrive: what the depth of the tree is measured against.
    """
    senders = set(trainer_nodes)
    by_nodes: dict[Nodes, list[int]] = {}
    for index, nodes in enumerate(replicas):
        if not senders.issuperset(nodes):
            by_nodes.setdefault(nodes, []).append(index)
    found: list[int | None] = [None] * len(replicas)
    for members in by_nodes.values():
        for above, below in pairwise(members):
            found[below] = above
    heads = [members[0] for members in by_nodes.values()]
    if heads:
        roots = max(1, len(senders) // len(set(replicas[heads[0]])))
        for child, parent in _forest(heads, roots, rounds):
            found[child] = parent
    return found


def _forest(heads: Sequence[int], roots: int, rounds: int) -> list[tuple[int, int]]:
    # One that feeds f others sends f times what it receives, so every round takes f times as long; but the tree is
    # shallower. Many rounds want chains, few rounds want a bushy tree.
    best: tuple[int, list[tuple[int, int]]] = (0, [])
    for fan_out in range(1, len(heads) - roots + 1):
        edges, deepest = _grow(heads, roots, fan_out)
        cost = fan_out * (rounds + deepest)
        if not best[1] or cost < best[0]:
            best = cost, edges
        if fan_out * rounds >= best[0]:
            break
    return best[1]


def _grow(heads: Sequence[int], roots: int, fan_out: int) -> tuple[list[tuple[int, int]], int]:
    open_slots = deque((head, 0) for head in heads[:roots] for _ in range(fan_out))
    edges, deepest = [], 0
    for head in heads[roots:]:
        parent, level = open_slots.popleft()
        edges.append((head, parent))
        deepest = level + 1
        open_slots.extend((head, level + 1) for _ in range(fan_out))
    return edges, deepest


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

"""Which replica gets which round from the trainer and which from another replica."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from launcher.common.errors import BridgeError

Nodes = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Relays:
    """The way of every round to every engine.

    Engines of one home share their nodes and need the same. Each round enters a home once, at its members in turn, and
    goes round from there: so all network cards of a node take part, and the network carries the weights once per node.
    """

    homes: tuple[tuple[int, ...], ...]
    """Engines by index; each in exactly one home."""

    feeds: tuple[int | None, ...]
    """For each home the one that relays to it, or None where the trainer sends."""

    def parent(self, engine: int, number: int) -> int | None:
        """The engine that relays round ``number`` to ``engine``, or None where the trainer sends it."""
        home, place = self._place[engine]
        members = self.homes[home]
        if place != number % len(members):
            return members[place - 1]
        feed = self.feeds[home]
        return None if feed is None else self.homes[feed][number % len(self.homes[feed])]

    def depth(self, engine: int, number: int) -> int:
        """Relays on the way of a round from the trainer to ``engine``."""
        steps, parent = 0, self.parent(engine, number)
        while parent is not None:
            steps, parent = steps + 1, self.parent(parent, number)
        return steps

    def step(self, engine: int, number: int) -> int:
        """When a round reaches an engine if every link carries one round at a time; its sender may go ahead of it.

        As many rounds set out together as the first home has members, one for each.
        """
        return number // self.width(engine) + self.depth(engine, number)

    def width(self, engine: int) -> int:
        """Rounds that are on their way to an engine at a time: its staging holds this many."""
        return len(self.homes[self._place[self.origin(engine)][0]])

    @cached_property
    def deepest(self) -> int:
        """Most relays on the way of any round."""
        ways = [self._feeds_above(home) + len(members) - 1 for home, members in enumerate(self.homes)]
        return max(ways, default=0)

    def origin(self, engine: int) -> int:
        """A directly fed engine with the same needs, itself where the trainer sends to its home."""
        home, _ = self._place[engine]
        if self.feeds[home] is None:
            return engine
        while (feed := self.feeds[home]) is not None:
            home = feed
        return self.homes[home][0]

    def is_fed(self, engine: int) -> bool:
        """Whether the trainer sends some round to this engine."""
        return self.feeds[self._place[engine][0]] is None

    def children(self, engine: int) -> tuple[int, ...]:
        """Engines to which this one relays some round."""
        home, place = self._place[engine]
        members = self.homes[home]
        fed = [e for below, feed in enumerate(self.feeds) if feed == home for e in self.homes[below]]
        return (*((members[(place + 1) % len(members)],) if len(members) > 1 else ()), *fed)

    def check(self, engines: int) -> None:
        """Checks that every engine is in one home and every home is reached from the trainer.

        Raises:
            BridgeError: It is not so.
        """
        if sorted(e for members in self.homes for e in members) != list(range(engines)):
            raise BridgeError("Not every engine has exactly one home.")
        for home, members in enumerate(self.homes):
            if self._feeds_above(home) > len(self.homes):
                raise BridgeError(f"Engines {members} are relayed to in a circle: the trainer never reaches them.")

    def _feeds_above(self, home: int) -> int:
        steps, feed = 0, self.feeds[home]
        while feed is not None and steps <= len(self.homes):
            steps, feed = steps + 1, self.feeds[feed]
        return steps

    @cached_property
    def _place(self) -> dict[int, tuple[int, int]]:
        return {e: (home, i) for home, members in enumerate(self.homes) for i, e in enumerate(members)}


def choose_relays(replicas: Sequence[Nodes], trainer_nodes: Sequence[int], rounds: int) -> Relays:
    """The relays among several replicas that need the same.

    The trainer's nodes can send as fast as an equal number of nodes can receive. As many homes as that are fed
    directly; the others hang below them. An engine on the trainer's own nodes is as near to it as to any neighbour,
    and always fed directly.

    Args:
        replicas: The node of every rank of every replica.
        trainer_nodes: The nodes that hold the source.
        rounds: Rounds in which one replica's weights arrive: what the depth of a relay is measured against.
    """
    senders = set(trainer_nodes)
    near = [(index,) for index, nodes in enumerate(replicas) if senders.issuperset(nodes)]
    by_nodes: dict[Nodes, list[int]] = {}
    for index, nodes in enumerate(replicas):
        if not senders.issuperset(nodes):
            by_nodes.setdefault(nodes, []).append(index)
    far = [tuple(members) for members in by_nodes.values()]
    homes = (*far, *near)
    feeds: list[int | None] = [None] * len(homes)
    if far:
        span = len(set(replicas[far[0][0]]))
        direct = max(1, len(senders) // span)
        for child, parent in _forest(range(len(far)), direct, rounds):
            feeds[child] = parent
    return Relays(homes=homes, feeds=tuple(feeds))


def join(parts: Sequence[tuple[Sequence[int], Relays]]) -> Relays:
    """Relays of several groups of engines as one; each group's engines are given by their indices among all."""
    homes: list[tuple[int, ...]] = []
    feeds: list[int | None] = []
    for engines, relays in parts:
        base = len(homes)
        homes += [tuple(engines[i] for i in members) for members in relays.homes]
        feeds += [None if feed is None else base + feed for feed in relays.feeds]
    return Relays(homes=tuple(homes), feeds=tuple(feeds))


def _forest(homes: Sequence[int], roots: int, rounds: int) -> list[tuple[int, int]]:
    # A home that feeds f others sends f times what it receives, so every round takes f times as long; but the tree is
    # shallower. Many rounds want chains, few rounds want a bushy tree.
    best: tuple[int, list[tuple[int, int]]] = (0, [])
    for fan_out in range(1, len(homes) - roots + 1):
        edges, deepest = _grow(homes, roots, fan_out)
        cost = fan_out * (rounds + deepest)
        if not best[1] or cost < best[0]:
            best = cost, edges
        if fan_out * rounds >= best[0]:
            break
    return best[1]


def _grow(homes: Sequence[int], roots: int, fan_out: int) -> tuple[list[tuple[int, int]], int]:
    open_slots = deque((home, 0) for home in homes[:roots] for _ in range(fan_out))
    edges, deepest = [], 0
    for home in homes[roots:]:
        parent, level = open_slots.popleft()
        edges.append((home, parent))
        deepest = level + 1
        open_slots.extend((home, level + 1) for _ in range(fan_out))
    return edges, deepest

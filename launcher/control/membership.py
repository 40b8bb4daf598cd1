"""Which node of the allocation holds which place of the layout, and which nodes are there at all."""

from __future__ import annotations

from launcher.layout.model import Layout


class Membership:
    """Nodes are numbered as in the allocation, places as in the layout; they differ once a spare has taken a place.

    Args:
        layout: its nodes are the places; each is at first held by the node of the same number.
        lease_timeout_s: a node silent for longer is lost.
    """

    def __init__(self, layout: Layout, lease_timeout_s: float) -> None:
        self._places = len(layout.nodes)
        self._size = self._places + len(layout.spares)
        self._lease_timeout_s = lease_timeout_s
        self._node_at: dict[int, int] = {place: place for place in range(self._places)}
        self._place_of: dict[int, int] = dict(self._node_at)
        self._seen: dict[int, float] = {}
        self.hostnames: dict[int, str] = {node.node_rank: node.hostname for node in layout.everybody}
        self.lost: set[int] = set()
        self.gone: set[int] = set()

    def check(self, node: int) -> None:
        """Raises ``IndexError`` for a number that no node has."""
        if not 0 <= node < self._size:
            raise IndexError(f"no node {node} among {self._size}")

    def seen(self, node: int, now: float) -> bool:
        """A node has spoken; False if it was lost before, and so may not take part any more."""
        if node in self.lost:
            return False
        self._seen[node] = now
        return True

    def place_of(self, node: int) -> int | None:
        """The place that a node holds; None for a spare and for a lost node."""
        return self._place_of.get(node)

    def node_at(self, place: int) -> int | None:
        """The node that holds a place; None if it was lost and nobody has taken it."""
        return self._node_at.get(place)

    def is_up(self, node: int) -> bool:
        """Whether a node has reported and was not lost."""
        return node in self._seen and node not in self.lost

    def empty_places(self) -> list[int]:
        """Places without a node that has reported."""
        return [
            place for place in range(self._places) if (node := self._node_at.get(place)) is None or not self.is_up(node)
        ]

    def silent(self, now: float) -> list[tuple[int, float]]:
        """Nodes whose lease has run out, with the seconds since they last spoke."""
        return [
            (node, now - seen)
            for node, seen in sorted(self._seen.items())
            if node not in self.lost and node not in self.gone and now - seen > self._lease_timeout_s
        ]

    def have_spoken_since(self, places: frozenset[int], time: float) -> bool:
        """Whether every node that holds one of the places has spoken later than ``time``."""
        nodes = [self._node_at.get(place) for place in places]
        return all(node is None or self._seen.get(node, 0.0) > time for node in nodes)

    def spares(self) -> set[int]:
        """Nodes that are there and hold no place."""
        return {n for n in self._seen if self.is_up(n) and n not in self.gone and n not in self._place_of}

    def lose(self, node: int) -> int | None:
        """A node is lost for good; the place that it held, if any."""
        self.lost.add(node)
        place = self._place_of.pop(node, None)
        if place is not None:
            del self._node_at[place]
        return place

    def fill(self, place: int) -> int | None:
        """Gives an empty place to a spare that is there; that node, or None if there is none."""
        node = min(self.spares(), default=None)
        if node is not None:
            self._node_at[place] = node
            self._place_of[node] = place
        return node

    @property
    def everybody_gone(self) -> bool:
        """True once each node that ever reported has left, or is lost."""
        return set(self._seen) <= self.gone | self.lost

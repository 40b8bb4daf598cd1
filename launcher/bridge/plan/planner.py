"""Makes the reshard plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from launcher.bridge.plan.boxes import Box
from launcher.bridge.plan.dtypes import ITEMSIZE, wire_dtype
from launcher.bridge.plan.plan import Engine, Plan, Receiver, Span, Transfer
from launcher.bridge.plan.relay import Relays, choose_relays, join
from launcher.bridge.plan.requirements import Parameter, Part
from launcher.bridge.plan.sharding import Source
from launcher.bridge.plan.split import Cut, Location, cut
from launcher.common.errors import BridgeError

ROUND_BYTES = 128 << 20
"""Default for the most bytes that a receiver takes in one round: what it must stage."""

SMALLEST_ROUND = 1 << 20
"""Bytes below which rounds are not made smaller for a deep relay: messages would be too short for the network."""

ROUNDS_PER_RELAY = 32
"""Rounds wanted for every relay on the longest way to an engine; the last engine is done 1/32 later than the first."""

GRAIN = 32
"""Parts of a round below which no transfer is divided."""


def reshard(
    sources: Mapping[str, Source],
    engines: Sequence[Engine],
    trainers: Sequence[Location],
    *,
    round_bytes: int = ROUND_BYTES,
    wires: Mapping[str, str] | None = None,
) -> Plan:
    """Plans one version's way from the trainer's shards to every engine.

    Args:
        sources: The trainer's tensors by name.
        engines: The replicas.
        trainers: Where each trainer rank runs.
        round_bytes: Most bytes that a receiver must stage; a round takes all of it, or less where several rounds are
            on their way to an engine at a time, or relays are many.
        wires: Element type on the way, by trainer tensor, where it shall not be the smaller of both sides.

    Raises:
        BridgeError: A tensor is missing, cannot be cast, or cannot be divided into rounds of this size.
    """
    needs = _Wires(sources, wires or {})
    relays, round_bytes = _relays(engines, trainers, needs, round_bytes)
    planner = _Planner(needs, tuple(trainers), round_bytes)
    transfers: dict[Receiver, tuple[Transfer, ...]] = {}
    for home, members in enumerate(relays.homes):
        if relays.feeds[home] is None:
            first = engines[members[0]]
            for rank, (parameters, location) in enumerate(zip(first.parameters, first.locations, strict=True)):
                shared = planner.receive(parameters, location)
                transfers.update((Receiver(engine=engine, rank=rank), shared) for engine in members)
    return Plan(
        sources=sources,
        trainers=tuple(trainers),
        engines=tuple(engines),
        transfers=transfers,
        relays=relays,
        round_bytes=round_bytes,
    )


class _Wires:
    """The trainer's tensors, and in which type they travel."""

    def __init__(self, sources: Mapping[str, Source], wires: Mapping[str, str]) -> None:
        self.sources = sources
        self._wires = wires

    def wire(self, part: Part, parameter: Parameter) -> str:
        source = self.sources.get(part.source)
        if source is None:
            raise BridgeError(
                f"The engine's `{parameter.name}` needs `{part.source}`, which the trainer does not have."
            )
        return self._wires.get(part.source) or wire_dtype(source.dtype, parameter.dtype)

    def bytes_needed(self, parameters: Sequence[Parameter]) -> int:
        return sum(part.box.volume * ITEMSIZE[self.wire(part, p)] for p in parameters for part in p.parts)


class _Planner:
    """Cuts needs once per distinct box and placement, and keeps the senders' loads even."""

    def __init__(self, needs: _Wires, trainers: tuple[Location, ...], round_bytes: int) -> None:
        self._trainers = trainers
        self._needs = needs
        self._round_bytes = round_bytes
        # A round is left less than this much short of full, so that a relay, which is one round behind, keeps pace.
        self._grain = max(1, round_bytes // GRAIN)
        placements = {id(source.shards): source.shards for source in needs.sources.values()}
        self._balance = any(len(shard.ranks) > 1 for shards in placements.values() for shard in shards)
        self._load: Counter[int] = Counter()
        self._sent: dict[tuple[Cut, int], dict[int, int]] = {}
        self._cuts: dict[tuple[int, Box, int, Location | None], tuple[Cut, ...]] = {}
        self._shares: dict[tuple[Cut, int], tuple[int, int, int]] = {}

    def receive(self, parameters: Sequence[Parameter], location: Location) -> tuple[Transfer, ...]:
        """The transfers of one receiver, filled into rounds in the order of its parameters."""
        transfers, fill = [], _Fill(self._round_bytes)
        for parameter in parameters:
            for part in parameter.parts:
                wire = self._needs.wire(part, parameter)
                chosen = self._choose(part, ITEMSIZE[wire], location)
                shares, share_bytes = self._divide(chosen, ITEMSIZE[wire], part.source, fill.left)
                spans = fill.take(shares, share_bytes)
                transfers.append(
                    Transfer(parameter=parameter.name, part=part, wire=wire, cut=chosen, shares=shares, spans=spans)
                )
        return tuple(transfers)

    def _choose(self, part: Part, itemsize: int, location: Location) -> Cut:
        shards = self._needs.sources[part.source].shards
        alone = (id(shards), part.box, itemsize, None)
        ways = self._cuts.get(alone) or self._cuts.get((*alone[:3], location))
        if ways is None:
            ways = cut(shards, part.box, itemsize, self._trainers, location)
            # Where every shard has one holder, the receiver's place does not matter and all receivers share the cut.
            single = all(len(shard.ranks) == 1 for shard in shards)
            self._cuts[alone if single else (*alone[:3], location)] = ways
        if not self._balance:
            return ways[0]
        best = min(ways, key=lambda way: max((self._load[source] for source in way.by_source), default=0))
        sent = self._sent.get((best, itemsize))
        if sent is None:
            sent = {source: best.bytes_from(source, itemsize) for source in best.by_source}
            self._sent[best, itemsize] = sent
        self._load.update(sent)
        return best

    def _divide(self, chosen: Cut, itemsize: int, name: str, left: int) -> tuple[int, int]:
        """Into how many shares a transfer is divided, and the most bytes of one; whole when it fits in what is left."""
        known = self._shares.get((chosen, itemsize))
        if known is None:
            whole = chosen.share_bytes(itemsize)
            shares, longest = (
                -(-whole // self._grain) or 1,
                max((max(p.shape, default=1) for p in chosen.pieces), default=1),
            )
            while (nbytes := chosen.share_bytes(itemsize, shares)) > self._round_bytes:
                shares += 1
                if shares > longest:
                    raise BridgeError(
                        f"`round_bytes` ({self._round_bytes}) is less than the {nbytes} that `{name}` takes at least. "
                        "HINT: raise `round_bytes`."
                    )
            known = self._shares[chosen, itemsize] = whole, shares, nbytes
        whole, shares, nbytes = known
        return (1, whole) if whole <= left else (shares, nbytes)


class _Fill:
    """Fills a receiver's rounds one after the other."""

    def __init__(self, round_bytes: int) -> None:
        self._round_bytes = round_bytes
        self._number = 0
        self.left = round_bytes

    def take(self, shares: int, share_bytes: int) -> tuple[Span, ...]:
        """Places shares of at most ``share_bytes`` each; as many as fit in the round at hand, then in new ones."""
        spans, start = [], 0
        while start < shares:
            count = min(shares - start, self.left // share_bytes if share_bytes else shares)
            if count:
                spans.append(Span(round=self._number, start=start, stop=start + count))
                start, self.left = start + count, self.left - count * share_bytes
            else:
                self._number, self.left = self._number + 1, self._round_bytes
        return tuple(spans)


def _relays(
    engines: Sequence[Engine], trainers: Sequence[Location], needs: _Wires, round_bytes: int
) -> tuple[Relays, int]:
    """Who relays to whom, and the size of rounds that suits the longest way."""
    holders = sorted({location.node for location in trainers})
    parts, limit = [], round_bytes
    for members in _alike(engines):
        needed = max((needs.bytes_needed(parameters) for parameters in engines[members[0]].parameters), default=0)
        nodes = [tuple(location.node for location in engines[i].locations) for i in members]
        relays = choose_relays(nodes, holders, max(1, needed // round_bytes))
        parts.append((members, relays))
        width = max(map(relays.width, range(len(members))))
        if relays.deepest:
            # Each relay is a round behind the one above it, so the last one is late by the depth times one round.
            enough = needed // (relays.deepest * ROUNDS_PER_RELAY)
            limit = min(limit, max(SMALLEST_ROUND, min(round_bytes, enough) // width))
    return join(parts), limit


def _alike(engines: Sequence[Engine]) -> list[list[int]]:
    """Indices of the engines, grouped by equal needs: one may relay to another."""
    groups: list[tuple[Engine, list[int]]] = []
    for index, engine in enumerate(engines):
        # Identical engines mostly share one object, which `is` tells faster than comparing every parameter.
        for other, members in groups:
            if other.parameters is engine.parameters or other.parameters == engine.parameters:
                members.append(index)
                break
        else:
            groups.append((engine, [index]))
    return [members for _, members in groups]

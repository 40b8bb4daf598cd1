"""Makes the reshard plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from launcher.bridge.plan.boxes import Box
from launcher.bridge.plan.dtypes import ITEMSIZE, wire_dtype
from launcher.bridge.plan.plan import Engine, Plan, PlannedTransfer, Receiver, RoundChunks
from launcher.bridge.plan.requirements import Parameter, Region
from launcher.bridge.plan.sharding import Source
from launcher.bridge.plan.split import Location, Split, possible_splits
from launcher.common.errors import BridgeError

ROUND_BYTES = 128 << 20
"""Default for the most bytes that a receiver takes in one round: what it must stage."""

GRAIN = 32
"""Fractions of a round below which no transfer is divided."""


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
        round_bytes: Most bytes that a receiver takes in one round.
        wires: Element type on the way, by trainer tensor, where it shall not be the smaller of both sides.

    Raises:
        BridgeError: A tensor is missing, cannot be cast, or cannot be divided into rounds of this size.
    """
    planner = _Planner(_WireTypes(sources, wires or {}), tuple(trainers), round_bytes)
    transfers = {
        Receiver(engine=index, rank=rank): planner.receive(parameters, location)
        for index, engine in enumerate(engines)
        for rank, (parameters, location) in enumerate(zip(engine.parameters, engine.locations, strict=True))
    }
    return Plan(
        sources=sources,
        trainers=tuple(trainers),
        engines=tuple(engines),
        transfers=transfers,
        round_bytes=round_bytes,
    )


class _WireTypes:
    """The trainer's tensors, and in which type they travel."""

    def __init__(self, sources: Mapping[str, Source], wires: Mapping[str, str]) -> None:
        self.sources = sources
        self._wires = wires

    def wire(self, region: Region, parameter: Parameter) -> str:
        source = self.sources.get(region.source)
        if source is None:
            raise BridgeError(
                f"The engine's `{parameter.name}` needs `{region.source}`, which the trainer does not have."
            )
        return self._wires.get(region.source) or wire_dtype(source.dtype, parameter.dtype)


class _Planner:
    """Splits each distinct required box once per placement, and keeps the senders' loads even."""

    def __init__(self, wires: _WireTypes, trainers: tuple[Location, ...], round_bytes: int) -> None:
        self._trainers = trainers
        self._wires = wires
        self._round_bytes = round_bytes
        # A round is left less than this much short of full, so that a relay, one round behind, keeps pace.
        self._grain = max(1, round_bytes // GRAIN)
        placements = {id(source.shards): source.shards for source in wires.sources.values()}
        self._balance = any(len(shard.ranks) > 1 for shards in placements.values() for shard in shards)
        self._load: Counter[int] = Counter()
        self._sent: dict[tuple[Split, int], dict[int, int]] = {}
        self._splits: dict[tuple[int, Box, int, Location | None], tuple[Split, ...]] = {}
        self._chunks: dict[tuple[Split, int], tuple[int, int, int]] = {}

    def receive(self, parameters: Sequence[Parameter], location: Location) -> tuple[PlannedTransfer, ...]:
        """The transfers of one receiver, filled into rounds in the order of its parameters."""
        transfers, fill = [], _Fill(self._round_bytes)
        for parameter in parameters:
            for region in parameter.regions:
                wire = self._wires.wire(region, parameter)
                chosen = self._choose(region, ITEMSIZE[wire], location)
                chunks, chunk_bytes = self._divide(chosen, ITEMSIZE[wire], region.source, fill.left)
                schedule = fill.take(chunks, chunk_bytes)
                transfers.append(
                    PlannedTransfer(
                        parameter=parameter.name,
                        region=region,
                        wire=wire,
                        split=chosen,
                        chunks=chunks,
                        schedule=schedule,
                    )
                )
        return tuple(transfers)

    def _choose(self, region: Region, itemsize: int, location: Location) -> Split:
        shards = self._wires.sources[region.source].shards
        alone = (id(shards), region.box, itemsize, None)
        choices = self._splits.get(alone) or self._splits.get((*alone[:3], location))
        if choices is None:
            choices = possible_splits(shards, region.box, itemsize, self._trainers, location)
            # Where every shard has one holder, the receiver's place does not matter and all receivers share the split.
            single = all(len(shard.ranks) == 1 for shard in shards)
            self._splits[alone if single else (*alone[:3], location)] = choices
        if not self._balance:
            return choices[0]
        best = min(choices, key=lambda choice: max((self._load[source] for source in choice.by_source), default=0))
        sent = self._sent.get((best, itemsize))
        if sent is None:
            sent = {source: best.bytes_from(source, itemsize) for source in best.by_source}
            self._sent[best, itemsize] = sent
        self._load.update(sent)
        return best

    def _divide(self, chosen: Split, itemsize: int, name: str, left: int) -> tuple[int, int]:
        """Into how many chunks a transfer is divided, and the most bytes of one; whole when it fits in what is left."""
        known = self._chunks.get((chosen, itemsize))
        if known is None:
            whole = chosen.chunk_bytes(itemsize)
            chunks, longest = (
                -(-whole // self._grain) or 1,
                max((max(p.shape, default=1) for p in chosen.boxes), default=1),
            )
            while (nbytes := chosen.chunk_bytes(itemsize, chunks)) > self._round_bytes:
                chunks += 1
                if chunks > longest:
                    raise BridgeError(
                        f"`round_bytes` ({self._round_bytes}) is less than the {nbytes} that `{name}` takes at least. "
                        "HINT: raise `round_bytes`."
                    )
            known = self._chunks[chosen, itemsize] = whole, chunks, nbytes
        whole, chunks, nbytes = known
        return (1, whole) if whole <= left else (chunks, nbytes)


class _Fill:
    """Fills a receiver's rounds one after the other."""

    def __init__(self, round_bytes: int) -> None:
        self._round_bytes = round_bytes
        self._number = 0
        self.left = round_bytes

    def take(self, chunks: int, chunk_bytes: int) -> tuple[RoundChunks, ...]:
        """Places chunks of at most ``chunk_bytes`` each; as many as fit in the round at hand, then in new ones."""
        schedule, start = [], 0
        while start < chunks:
            count = min(chunks - start, self.left // chunk_bytes if chunk_bytes else chunks)
            if count:
                schedule.append(RoundChunks(round=self._number, start=start, stop=start + count))
                start, self.left = start + count, self.left - count * chunk_bytes
            else:
                self._number, self.left = self._number + 1, self._round_bytes
        return tuple(schedule)

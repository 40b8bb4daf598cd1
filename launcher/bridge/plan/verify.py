"""The proof that a plan writes every element of every parameter of every receiver exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from itertools import pairwise

from launcher.bridge.plan.boxes import Box, describe, take_chunks, tiling_problem
from launcher.bridge.plan.dtypes import ITEMSIZE
from launcher.bridge.plan.plan import Plan, PlannedTransfer, Receiver
from launcher.bridge.plan.requirements import Parameter
from launcher.bridge.plan.sharding import Shard
from launcher.bridge.plan.split import Split
from launcher.common.errors import BridgeError


def verify_plan(plan: Plan) -> None:
    """Checks the plan as it stands, not how it was made.

    In steps that follow from each other: the trainer's shards make up each tensor; the regions of a parameter, with its
    padding, make up the parameter; there is one transfer per region; the boxes of its split make up the region; whoever
    sends a box holds it; the chunks over rounds make up each box; no round is over its budget.

    Raises:
        BridgeError: The first of these that does not hold, with names.
    """
    _Proof(plan).run()


class _Proof:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        # Equal questions are asked once: a model has few distinct shapes, and most splits are shared objects.
        self._done: set[Hashable] = set()
        self._sizes: dict[tuple[Split, int, int, int, int], int] = {}

    def run(self) -> None:
        for source in self.plan.sources.values():
            if self._new("source", id(source.shards), source.shape):
                problem = tiling_problem(Box.full(source.shape), (shard.box for shard in source.shards))
                _check(problem, f"The trainer's shards of `{source.name}`")
        for index, engine in enumerate(self.plan.engines):
            for rank in range(len(engine.parameters)):
                self._receiver(Receiver(engine=index, rank=rank))

    def _receiver(self, receiver: Receiver) -> None:
        who = f"Engine {receiver.engine} rank {receiver.rank}"
        parameters = self.plan.engines[receiver.engine].parameters[receiver.rank]
        names = {parameter.name for parameter in parameters}
        if len(names) != len(parameters):
            raise BridgeError(f"{who} has two parameters of one name.")
        transfers = self.plan.transfers.get(receiver, ())
        wanted = [(parameter, region) for parameter in parameters for region in parameter.regions]
        if len(wanted) != len(transfers):
            raise BridgeError(f"{who} requires {len(wanted)} regions, but {len(transfers)} are on their way.")
        for parameter in parameters:
            self._parameter(parameter, who)
        per_round: Counter[int] = Counter()
        for (parameter, region), transfer in zip(wanted, transfers, strict=True):
            if transfer.parameter != parameter.name or (transfer.region is not region and transfer.region != region):
                raise BridgeError(f"{who}: a region of `{parameter.name}` is not on its way where it should be.")
            self._transfer(transfer, who)
            itemsize = ITEMSIZE[transfer.wire]
            for chunks in transfer.schedule:
                per_round[chunks.round] += self._bytes(
                    transfer.split, itemsize, chunks.start, chunks.stop, transfer.chunks
                )
        for number, nbytes in per_round.items():
            if nbytes > self.plan.round_bytes:
                raise BridgeError(f"{who} would get {nbytes} bytes in round {number}, over {self.plan.round_bytes}.")

    def _parameter(self, parameter: Parameter, who: str) -> None:
        targets = tuple(region.target for region in parameter.regions)
        if self._new("parameter", parameter.shape, targets, parameter.padding):
            problem = tiling_problem(Box.full(parameter.shape), (*targets, *parameter.padding))
            _check(problem, f"{who}: what is written into `{parameter.name}`")

    def _transfer(self, transfer: PlannedTransfer, who: str) -> None:
        region, split = transfer.region, transfer.split
        source = self.plan.sources.get(region.source)
        if source is None:
            raise BridgeError(
                f"{who}: `{transfer.parameter}` comes from `{region.source}`, which the trainer does not have."
            )
        if not Box.full(source.shape).contains(region.box):
            raise BridgeError(
                f"{who}: `{transfer.parameter}` requires {describe(region.box)} of `{region.source}` {source.shape}."
            )
        edges = [chunks.start for chunks in transfer.schedule] + [transfer.chunks]
        if edges[0] != 0 or edges[1:] != [chunks.stop for chunks in transfer.schedule] or edges != sorted(set(edges)):
            raise BridgeError(
                f"{who}: the rounds of `{transfer.parameter}` do not take each of its {transfer.chunks} chunks once."
            )
        numbers = [chunks.round for chunks in transfer.schedule]
        if numbers[0] < 0 or numbers != sorted(set(numbers)):
            raise BridgeError(
                f"{who}: `{transfer.parameter}` goes in rounds {numbers}, which do not follow each other."
            )
        if self._new("place", region.box.shape, region.target.shape, region.axes):
            region.locate(region.box)
        what = f"{who}: what is sent of `{region.source}` for `{transfer.parameter}`"
        if self._new("boxes", split, region.box):
            _check(tiling_problem(region.box, split.boxes), what)
        if self._new("holders", split, id(source.shards)):
            _check(_wrong_sender(split, source.shards), what)
        if len(edges) > 2 and self._new("chunks", split, tuple(edges)):
            for box in split.boxes:
                taken = (take_chunks(box, a, b, transfer.chunks) for a, b in pairwise(edges))
                _check(tiling_problem(box, taken), what)

    def _bytes(self, split: Split, itemsize: int, start: int, stop: int, count: int) -> int:
        key = (split, itemsize, start, stop, count)
        if key not in self._sizes:
            self._sizes[key] = sum(split.bytes_from(source, itemsize, start, stop, count) for source in split.by_source)
        return self._sizes[key]

    def _new(self, *question: Hashable) -> bool:
        if question in self._done:
            return False
        self._done.add(question)
        return True


def _wrong_sender(split: Split, shards: tuple[Shard, ...]) -> str | None:
    if len(split.boxes) != len(split.sources):
        return f"{len(split.boxes)} boxes have {len(split.sources)} senders"
    indexed = sorted(i for indices in split.by_source.values() for i in indices)
    if indexed != list(range(len(split.boxes))):
        return "a box is sent by nobody, or twice"
    held: dict[int, list[Box]] = {}
    for shard in shards:
        for rank in shard.ranks:
            held.setdefault(rank, []).append(shard.box)
    for source, indices in split.by_source.items():
        for i in indices:
            sent = split.boxes[i]
            if split.sources[i] != source or not any(box.contains(sent) for box in held.get(source, ())):
                return f"trainer rank {source} does not hold {describe(sent)}"
    return None


def _check(problem: str | None, what: str) -> None:
    if problem:
        raise BridgeError(f"{what} is not exactly once everything: {problem}.")

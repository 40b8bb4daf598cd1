"""The reshard plan: which bytes go from which rank to which, in which round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from launcher.bridge.plan.boxes import Box, take_chunks
from launcher.bridge.plan.dtypes import ITEMSIZE
from launcher.bridge.plan.requirements import Parameter, Region
from launcher.bridge.plan.sharding import Source
from launcher.bridge.plan.split import Location, Split, aligned


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One replica: what each of its ranks requires, and where each runs."""

    parameters: tuple[tuple[Parameter, ...], ...]
    locations: tuple[Location, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """One rank of one engine."""

    engine: int
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundChunks:
    """What of a transfer goes in one round: chunks ``start`` to ``stop`` of every box of its split."""

    round: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTransfer:
    """One region of one parameter on its way to one receiver."""

    parameter: str
    region: Region
    wire: str
    """Element type on the way."""

    split: Split
    chunks: int
    schedule: tuple[RoundChunks, ...]
    """In which round each chunk goes. A round takes its chunks of every box, so that all senders stay busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A box of one tensor inside a message."""

    source: str
    box: Box
    """In coordinates of the whole trainer tensor."""

    parameter: str
    target: Box
    """In coordinates of the receiver's parameter."""

    axes: tuple[int, ...] | None
    wire: str
    offset: int
    """Bytes from the beginning of the message."""

    nbytes: int
    """Bytes of the elements, without padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """All that one rank sends another in one round."""

    round: int
    sender: int
    """A trainer rank; the same rank of another replica if it is relayed."""

    receiver: Receiver
    segments: tuple[Segment, ...]
    nbytes: int
    is_relayed: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that moves for one version; a value that all ranks compute alike. Build it with `reshard`."""

    sources: Mapping[str, Source]
    trainers: tuple[Location, ...]
    engines: tuple[Engine, ...]
    transfers: Mapping[Receiver, tuple[PlannedTransfer, ...]]
    round_bytes: int

    @cached_property
    def rounds(self) -> int:
        """Rounds that an engine takes."""
        return 1 + max((t.schedule[-1].round for transfers in self.transfers.values() for t in transfers), default=-1)

    def incoming(self, receiver: Receiver) -> Iterator[Message]:
        """What a receiver gets, in the order of rounds and then of senders."""
        found = self._find(receiver, None)
        for number, sender in sorted(found):
            yield _message(number, sender, receiver, found[number, sender])

    def outgoing(self, trainer: int) -> Iterator[Message]:
        """What a trainer rank sends, round by round; in a round, senders begin with different receivers."""
        order = {receiver: i for i, receiver in enumerate(self.transfers)}
        messages = [
            _message(number, source, receiver, boxes)
            for receiver in self.transfers
            for (number, source), boxes in self._find(receiver, trainer).items()
        ]
        yield from sorted(messages, key=lambda m: (m.round, (order[m.receiver] - trainer) % len(order)))

    def _find(self, receiver: Receiver, sender: int | None) -> dict[tuple[int, int], list[tuple[PlannedTransfer, Box]]]:
        """By round and trainer rank, of one trainer rank or of all, what is to be sent and in which order."""
        found: dict[tuple[int, int], list[tuple[PlannedTransfer, Box]]] = {}
        for transfer in self.transfers[receiver]:
            by_source = transfer.split.by_source
            for source in by_source if sender is None else (sender,):
                for index in by_source.get(source, ()):
                    for chunks in transfer.schedule:
                        box = take_chunks(transfer.split.boxes[index], chunks.start, chunks.stop, transfer.chunks)
                        if box.volume:
                            found.setdefault((chunks.round, source), []).append((transfer, box))
        return found


def _message(number: int, source: int, receiver: Receiver, boxes: Sequence[tuple[PlannedTransfer, Box]]) -> Message:
    segments, offset = [], 0
    for transfer, box in boxes:
        region, itemsize = transfer.region, ITEMSIZE[transfer.wire]
        segments.append(
            Segment(
                source=region.source,
                box=box,
                parameter=transfer.parameter,
                target=region.locate(box),
                axes=region.axes,
                wire=transfer.wire,
                offset=offset,
                nbytes=box.volume * itemsize,
            )
        )
        offset += aligned(box.volume, itemsize)
    return Message(round=number, sender=source, receiver=receiver, segments=tuple(segments), nbytes=offset)

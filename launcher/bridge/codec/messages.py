"""Messages packed, unpacked and summed: on a GPU with Triton a launch for each message, else tensor by tensor.

What the digest covers. The sender's is of its own shards, read once more after packing; the receiver's is of the
tensors that messages were unpacked into. So the sums differ if packing, the wire, its buffers or unpacking change,
lose, repeat or misplace anything. Where the wire has another type than the shards, the sum is of the shards cast again.
What is not covered: shards that were wrong before, and what becomes of the received tensors afterwards.

Both sides add up :func:`launcher.bridge.codec.checksum.partial` over the same boxes, each times the key of its tensor.
The sums of the senders add up to the receiver's sum, modulo 2 ** 64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from launcher.bridge.codec.checksum import partial as partial_sum
from launcher.bridge.codec.checksum import tensor_key
from launcher.bridge.codec.local import Layout, LocalTensor, layout_of
from launcher.bridge.codec.pack import pack, read_back, unpack
from launcher.bridge.codec.spans import Copied, Summed, copied, summed
from launcher.bridge.plan import Message, Plan, Segment

if TYPE_CHECKING:
    from launcher.bridge.codec.kernels import CopyTable, OverwriteTable, SumTable

SENDING = ("pack", "base", "sent")
"""What a trainer rank's tables are for; the others are of an engine's parameters."""

Span = TypeVar("Span", Copied, Summed)
Tensors = Mapping[str, torch.Tensor]
Shards = Mapping[str, LocalTensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    layouts: list[Layout]
    """Where the tensors were, and how they lay."""

    table: CopyTable | OverwriteTable | SumTable
    rest: Message | None
    """Segments that no table can describe."""


class Messages:
    """One end's work on messages of a plan. Not to be used by two threads at a time.

    Args:
        plan: the plan.
        whole: this end's messages of a whole version, whose tables are kept; those of others are made every time.
    """

    def __init__(self, plan: Plan, whole: Sequence[Message]) -> None:
        self._plan = plan
        self._whole = {id(message): message for message in whole}
        self._kept: dict[tuple[str, int], _Kept] = {}

    def pack(self, message: Message, shards: Shards, buffer: torch.Tensor) -> None:
        """As :func:`launcher.bridge.codec.pack.pack`."""
        self._pack("pack", message, shards, buffer)

    def pack_base(self, message: Message, base: Shards, buffer: torch.Tensor) -> None:
        """As :meth:`pack`, of a second set of shards, whose tables are kept beside those of the first."""
        self._pack("base", message, base, buffer)

    def unpack(self, message: Message, buffer: torch.Tensor, parameters: Tensors) -> None:
        """As :func:`launcher.bridge.codec.pack.unpack`."""
        if not has_kernels(buffer.device):
            unpack(message, buffer, parameters)
            return
        rest = self._copy("unpack", message, parameters, buffer)
        if rest is not None:
            unpack(rest, buffer, parameters)

    def overwrite(
        self, message: Message, positions: torch.Tensor, values: torch.Tensor, parameters: Tensors
    ) -> tuple[int, Callable[[], None], Message | None]:
        """Prepares to write single words of a message into the parameters that it was unpacked into before.

        Args:
            positions: int64, shape (count,), rising: indices of words of the message.
            values: shape (count,): the words, as integers of their width.

        Returns:
            How many of the positions the second value, once called, writes; and the segments that are left to the
            caller, None if there are none.
        """
        if not has_kernels(values.device):
            return 0, lambda: None, message
        from launcher.bridge.codec.kernels import OverwriteTable

        def span(segment: Segment, tensor: torch.Tensor) -> list[Copied] | None:
            view = _plain("overwrite", segment, tensor, values.device)
            return None if view is None else copied(view, segment.offset)

        kept = self._table("overwrite", message, parameters, span, partial(OverwriteTable, device=values.device))
        assert isinstance(kept.table, OverwriteTable)
        addresses, count = kept.table.find(positions, values.element_size())
        return count, partial(kept.table.write, addresses, values), kept.rest

    def digest_sent(self, message: Message, shards: Shards, *, is_background: bool = False) -> torch.Tensor:
        """As :func:`launcher.bridge.codec.messages.digest_sent`.

        Args:
            is_background: copies go on beside it, which it shall leave memory bandwidth to.
        """
        return self._sum("sent", message, shards, partial(digest_sent, self._plan), is_background)

    def digest_received(self, message: Message, parameters: Tensors, *, is_background: bool = False) -> torch.Tensor:
        """As :func:`launcher.bridge.codec.messages.digest_received`; ``is_background`` as for the sender."""
        return self._sum("received", message, parameters, partial(digest_received, self._plan), is_background)

    def _pack(self, what: str, message: Message, shards: Shards, buffer: torch.Tensor) -> None:
        rest = self._copy(what, message, shards, buffer) if has_kernels(buffer.device) else message
        if rest is not None:
            pack(rest, shards, buffer)

    def _copy(self, what: str, message: Message, tensors: Tensors | Shards, buffer: torch.Tensor) -> Message | None:
        from launcher.bridge.codec.kernels import CopyTable

        def span(segment: Segment, tensor: torch.Tensor) -> list[Copied] | None:
            view = _plain(what, segment, tensor, buffer.device)
            return None if view is None else copied(view, segment.offset)

        kept = self._table(what, message, tensors, span, partial(CopyTable, device=buffer.device))
        assert isinstance(kept.table, CopyTable)
        kept.table.copy(buffer, to_message=what != "unpack")
        return kept.rest

    def _sum(
        self,
        what: str,
        message: Message,
        tensors: Tensors | Shards,
        plainly: Callable[[Message, Any], torch.Tensor],
        is_background: bool,
    ) -> torch.Tensor:
        device = tensors[_name(what, message.segments[0])].device if message.segments else torch.device("cpu")
        if not has_kernels(device):
            return plainly(message, tensors)
        from launcher.bridge.codec.kernels import SumTable

        def span(segment: Segment, tensor: torch.Tensor) -> list[Summed] | None:
            view = _plain(what, segment, tensor, device)
            if view is None:
                return None
            if view.shape != segment.box.shape:
                try:
                    view = view.view(segment.box.shape)
                except RuntimeError:  # Its strides cannot be those of the box.
                    return None
            return summed(view, segment.box, self._plan.sources[segment.source].shape, tensor_key(segment.source))

        kept = self._table(what, message, tensors, span, partial(SumTable, device=device))
        assert isinstance(kept.table, SumTable)
        total = kept.table.sum(is_background=is_background)
        return total if kept.rest is None else total + plainly(kept.rest, tensors)

    def _table(
        self,
        what: str,
        message: Message,
        tensors: Tensors | Shards,
        span: Callable[[Segment, torch.Tensor], list[Span] | None],
        table: Callable[[list[Span]], CopyTable | OverwriteTable | SumTable],
    ) -> _Kept:
        """The table that was made for a version before, if the tensors are still where they were; else a new one."""
        layouts = [_layout(tensors[_name(what, segment)]) for segment in message.segments]
        key = (what, id(message))
        kept = self._kept.get(key) if id(message) in self._whole else None
        if kept is not None and kept.layouts == layouts:
            return kept
        spans: list[Span] = []
        rest = []
        for segment in message.segments:
            tensor = tensors[_name(what, segment)]
            is_computed = isinstance(tensor, LocalTensor) and tensor.is_computed
            of_segment = None if is_computed else span(segment, _view(segment, tensor).detach())
            if of_segment is None:
                rest.append(segment)
            else:
                spans += of_segment
        left = replace(message, segments=tuple(rest)) if rest else None
        made = _Kept(layouts=layouts, table=table(spans), rest=left)
        if id(message) in self._whole:
            self._kept[key] = made
        return made


def _name(what: str, segment: Segment) -> str:
    return segment.source if what in SENDING else segment.parameter


def _layout(tensor: torch.Tensor | LocalTensor) -> Layout:
    return tensor.layout if isinstance(tensor, LocalTensor) else layout_of(tensor)


def _view(segment: Segment, tensor: torch.Tensor | LocalTensor) -> torch.Tensor:
    """What of a sender's tensor, or of a receiver's parameter, a segment is."""
    return tensor.at(segment.box) if isinstance(tensor, LocalTensor) else tensor[segment.target.slices()]


def _plain(what: str, segment: Segment, view: torch.Tensor, device: torch.device) -> torch.Tensor | None:
    """A segment's elements if their bytes are those on the wire, in the same order."""
    if view.device != device or view.dtype != getattr(torch, segment.wire):
        return None
    return None if segment.axes is not None and what not in SENDING else view


@cache
def has_kernels(device: torch.device) -> bool:
    """Whether there are kernels for this device here."""
    return device.type == "cuda" and find_spec("triton") is not None


def digest_sent(plan: Plan, message: Message, shards: Mapping[str, LocalTensor]) -> torch.Tensor:
    """The sum over a message as its sender holds it: int64 scalar on the shards' device, not waited for."""
    values = []
    for segment in message.segments:
        local = shards[segment.source].at(segment.box)
        values.append(_partial(plan, segment, local.to(getattr(torch, segment.wire))))
    return _weighted(message, values)


def digest_received(plan: Plan, message: Message, parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The same sum over the places that the message was unpacked into."""
    return _weighted(message, [_partial(plan, segment, read_back(segment, parameters)) for segment in message.segments])


def _partial(plan: Plan, segment: Segment, value: torch.Tensor) -> torch.Tensor:
    return partial_sum(value.contiguous(), box=segment.box, shape=plan.sources[segment.source].shape)


def _weighted(message: Message, values: list[torch.Tensor]) -> torch.Tensor:
    """All of a message's sums, each times its tensor's key, in one step."""
    if not values:
        return torch.zeros((), dtype=torch.int64)
    keys = _keys(tuple(segment.source for segment in message.segments), values[0].device)
    return (torch.stack(values) * keys).sum()


@lru_cache(maxsize=4096)
def _keys(names: tuple[str, ...], device: torch.device) -> torch.Tensor:
    keys = [tensor_key(name) for name in names]
    return torch.tensor([key - (1 << 64) if key >> 63 else key for key in keys], device=device)


class SideStream:
    """A stream for a kind of work; on a CPU, none.

    Args:
        device: whose.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None

    @contextmanager
    def work(self) -> Iterator[None]:
        """What is enqueued inside is carried out after what the current stream has been given, beside what follows."""
        if self._device.type != "cuda":
            yield
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def synchronize(self) -> None:
        """Returns once all of it is done."""
        if self._stream is not None:
            self._stream.synchronize()

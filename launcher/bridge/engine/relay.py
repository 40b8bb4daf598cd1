"""A worker passes on to other replicas what it receives: the same rank there requires the same bytes.

It sends out of the tensors that it receives into, round by round, as soon as a round is there. So a child that is slow
or hangs holds up nobody but its own children, and a relay takes no memory but its wires'. The child compares what came
with what the trainer sent, like everybody; how it came does not matter.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch

from launcher.bridge.codec.pack import repack
from launcher.bridge.negotiation import restricted
from launcher.bridge.plan import Message
from launcher.bridge.transport.base import Meeting, SendWire, Transfer
from launcher.bridge.transport.links import connect_senders
from launcher.common.errors import BridgeError, TransferError

logger = logging.getLogger(__name__)

IN_FLIGHT = 4
END_S = 10.0
"""For a thread to notice that its wire was left."""


def relayed(incoming: Sequence[Message], rank: int) -> list[Message]:
    """What a worker gets from the same rank of another replica: each round as one message."""
    return [_joined(list(messages), rank) for _round, messages in groupby(incoming, key=lambda message: message.round)]


def _joined(messages: Sequence[Message], rank: int) -> Message:
    segments, offset = [], 0
    for message in messages:
        segments += [replace(segment, offset=segment.offset + offset) for segment in message.segments]
        offset += message.nbytes
    return replace(messages[0], sender=rank, segments=tuple(segments), nbytes=offset, is_relayed=True)


class Progress:
    """How much of a version a worker has received; its relays follow behind."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._changed = threading.Condition()
        self._round = -1
        self._error: str | None = None
        self._written: Any = None

    def begins(self, number: int) -> None:
        """Everything before this round is there."""
        self._now(number - 1)

    def ends(self) -> None:
        """Everything is there."""
        self._now(1 << 62)

    def fails(self, error: str) -> None:
        """No more will come."""
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def wait(self, number: int, deadline: float) -> None:
        """Returns once a round is there, for whatever the current stream does from now on.

        Raises:
            TransferError: it does not come in time, or will not come.
        """
        with self._changed:
            while self._round < number:
                if self._error is not None:
                    raise TransferError(f"nothing comes any more: {self._error}")
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    raise TransferError("did not come within its deadline.")
            if self._written is not None:
                torch.cuda.current_stream().wait_event(self._written)

    def _now(self, number: int) -> None:
        written = torch.cuda.current_stream().record_event() if self._on_gpu else None
        with self._changed:
            if number > self._round:
                self._round, self._written = number, written
                self._changed.notify_all()


class Relay:
    """Passes versions on to one worker of another replica.

    Args:
        incoming: what this worker gets of a version.
        rank: its rank, and the other one's.
        received: what messages are unpacked into.
        meeting: where the other one is met, in a thread.
        ways: transports; the first that both ends can have is taken.
    """

    def __init__(
        self,
        *,
        incoming: Sequence[Message],
        rank: int,
        received: Mapping[str, torch.Tensor],
        meeting: Meeting,
        ways: Sequence[str],
        device: torch.device,
    ) -> None:
        self._messages = relayed(incoming, rank)
        self._rank = rank
        self._received = received
        self._meeting_place = meeting
        self._ways = ways
        self._device = device
        self._wire: SendWire | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._meeting = threading.Thread(target=self._meet, name="bridge-relay-meeting", daemon=True)
        self._meeting.start()

    def start(self, only: frozenset[str] | None, progress: Progress, deadline: float) -> None:
        """Passes on one version, as it comes; returns at once."""
        self._thread = threading.Thread(
            target=self._pass_on, args=(only, progress, deadline), name="bridge-relay", daemon=True
        )
        self._thread.start()

    def end(self) -> bool:
        """Before the next version is written: whether this one may get it, too.

        One that still passes on the last version leaves its wire, so that nobody gets a mix.

        Raises:
            TransferError: it still reads what is about to be written.
        """
        if self._thread is not None and self._thread.is_alive():
            self.close()
            self._thread.join(END_S)
            if self._thread.is_alive():
                raise TransferError("the last version is still being passed on")
        return not self._closed

    def close(self) -> None:
        """Leaves the wire."""
        with self._lock:
            self._closed = True
            wire = self._wire
        if wire is not None:
            wire.abort()

    def _meet(self) -> None:
        largest = {self._rank: max((message.nbytes for message in self._messages), default=0)}
        try:
            wires = connect_senders(self._meeting_place, self._rank, {self._rank: self._ways}, largest, self._device)
        except (BridgeError, RuntimeError) as error:
            logger.warning("bridge: %s: nothing is relayed: %s", self._meeting_place.group, error)
            self.close()
            return
        with self._lock:
            self._wire = wires[self._rank]
            closed = self._closed
        if closed:
            self._wire.abort()

    def _pass_on(self, only: frozenset[str] | None, progress: Progress, deadline: float) -> None:
        try:
            self._meeting.join()
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
                with torch.cuda.stream(torch.cuda.Stream(self._device)):  # type: ignore[no-untyped-call]
                    self._send(only, progress, deadline)
            else:
                self._send(only, progress, deadline)
        except (BridgeError, RuntimeError) as error:
            # The child learns it at once, and the trainer from the child.
            logger.warning("bridge: %s: relaying ended: %s", self._meeting_place.group, error)
            self.close()

    def _send(self, only: frozenset[str] | None, progress: Progress, deadline: float) -> None:
        waiting: deque[Transfer] = deque()
        for message in self._messages:
            part = restricted(message, only)
            if part is None:
                continue
            progress.wait(part.round, deadline)
            with self._lock:
                if self._closed or self._wire is None:
                    raise TransferError("its wire was left")
                wire = self._wire
            while len(waiting) >= IN_FLIGHT:
                waiting.popleft().poll(deadline)
            buffer = wire.buffer(part.nbytes, deadline)
            with torch.no_grad():
                repack(part, self._received, buffer)
            waiting.append(wire.post_send(buffer))
        while waiting:
            waiting.popleft().poll(deadline)

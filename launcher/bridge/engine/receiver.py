"""An engine worker's end of the data plane; knows wires, plans and tensors, and no engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch

from launcher.bridge.codec.delta import apply
from launcher.bridge.codec.messages import Messages, SideStream
from launcher.bridge.engine import receive_loop
from launcher.bridge.engine.relay import Progress, Relay, relayed
from launcher.bridge.negotiation import restricted
from launcher.bridge.plan import Message, Plan, Receiver
from launcher.bridge.transport.base import DirectRecvWire, Meeting, RecvWire, RegionRecvWire, Transfer
from launcher.bridge.transport.links import connect_receivers
from launcher.bridge.transport.regions import Splits, received_into, received_regions, split_large
from launcher.common.errors import BridgeError, TransferError

MASK = (1 << 64) - 1


class WeightReceiver:
    """Receives versions beside the live weights, in a thread, while the engine goes on decoding.

    Args:
        plan: the agreed plan of this replica.
        rank: this worker's rank in the replica.
        received: what messages are unpacked into, by the plan's parameter names.
        meeting: where the trainer's ranks are met, in a thread.
        transports: of the wire from every trainer rank; the first that both ends can have.
        relay: transports of the one wire that there is if this worker's like in another replica relays everything.
        timeout_s: deadline of every version.
        verify: also compute the digest of what has arrived.
        is_aside: nobody else will ever use ``received``, so that what is still on its way when the wires are left may
            be written there.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        rank: int,
        received: Mapping[str, torch.Tensor],
        meeting: Meeting,
        transports: Sequence[Sequence[str]],
        device: torch.device,
        timeout_s: float,
        verify: bool,
        is_aside: bool = False,
        relay: Sequence[str] | None = None,
    ) -> None:
        self._plan = plan
        self._rank = rank
        self._incoming = list(plan.incoming(Receiver(engine=0, rank=rank)))
        self._relay = relay
        if relay is not None:
            self._incoming = relayed(self._incoming, rank)
        self._relays: dict[int, Relay] = {}
        self._received = received
        self._is_aside = is_aside
        self._device = device
        self._meeting_place = meeting
        self._transports = transports
        self._timeout_s = timeout_s
        self._verify = verify
        self._wires: dict[int, RecvWire] = {}
        self._thread: threading.Thread | None = None
        self._error: str | None = None
        self._version: int | None = None
        self._digest: int | None = None
        self._held: int | None = None
        """The version that the shadow holds whole, so that a part of the next one, or its changes, are enough."""

        self._writing = threading.Lock()
        """Held while anything is written into ``received``."""

        self._closed = False
        self._beside: Any = None
        self._checking = SideStream(device)
        self._refusal: BridgeError | None = None
        self._meeting = threading.Thread(target=self._meet, name="bridge-meeting", daemon=True)
        self._meeting.start()

    def prepare(self, version: int, names: list[str] | None, base: int | None = None) -> None:
        """Starts receiving one version, or some of its tensors; returns at once.

        Args:
            version: which.
            names: these tensors; None for all.
            base: only what has changed since this version comes; everything if None.

        Raises:
            TransferError: a version is still being received, or a part is to come before there is a whole.
        """
        if self._thread is not None and self._thread.is_alive():
            # A newer version supersedes it, but not on wires where the rest of it may still come.
            self.close()
            raise TransferError(f"version {self._version} was still being received and is given up: join anew")
        self._relays = {child: relay for child, relay in self._relays.items() if relay.end()}
        if names is not None and self._held is None:
            raise TransferError(f"version {version} is only a part, and no whole version has come before it")
        if base is not None and base != self._held:
            raise TransferError(f"version {version} comes as changes since {base}, but this worker holds {self._held}")
        if self._error is not None:
            # The rest of that version may still come.
            self.close()
            raise TransferError(f"version {self._version} was not received: join anew")
        self._version, self._error, self._digest, self._held = version, None, None, None
        only = None if names is None else frozenset(names)
        progress = Progress(self._device)
        self._thread = threading.Thread(
            target=self._receive, args=(only, base is not None, progress), name="bridge-receiver", daemon=True
        )
        self._thread.start()
        for passing_on in self._relays.values():
            passing_on.start(only, progress, time.monotonic() + self._timeout_s)

    def relay_to(self, child: int, meeting: Meeting, ways: Sequence[str]) -> None:
        """From the next version on, what comes is passed on to this worker's like in another replica."""
        before = self._relays.pop(child, None)
        if before is not None:
            before.close()
        incoming = list(self._plan.incoming(Receiver(engine=0, rank=self._rank)))
        self._relays[child] = Relay(
            incoming=incoming,
            rank=self._rank,
            received=self._received,
            meeting=meeting,
            ways=ways,
            device=self._device,
        )

    def status(self) -> dict[str, Any]:
        """``state`` is ``idle``, ``receiving``, ``received`` or ``failed``, with ``version``, ``error``, ``digest``."""
        if self._thread is None:
            state = "idle"
        elif self._thread.is_alive():
            state = "receiving"
        else:
            state = "failed" if self._error else "received"
        return {"state": state, "version": self._version, "error": self._error, "digest": self._digest}

    def wait(self, timeout_s: float) -> None:
        """Returns once nothing is being received any more, or after ``timeout_s``."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def committed(self, version: int) -> None:
        """The caller is about to write this version; from now on parts of a version may follow.

        Raises:
            TransferError: that version has not been received whole.
        """
        status = self.status()
        if status["state"] != "received" or status["version"] != version:
            raise TransferError(f"version {version} has not been received: {status}")
        self._thread, self._held = None, version

    def drop(self) -> None:
        """Forgets what has been received; a transfer under way is left to its deadline."""
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None

    def close(self) -> None:
        """Leaves the wires; nothing is received any more."""
        with self._writing:
            self._closed = True
            wires = list(self._wires.values())
        for wire in wires:
            wire.abort()
        for relay in self._relays.values():
            relay.close()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _meet(self) -> None:
        senders = sorted({message.sender for message in self._incoming})
        transports = {sender: self._relay or self._transports[sender] for sender in senders}
        try:
            wires = connect_receivers(self._meeting_place, self._rank, transports, self._device)
        except (BridgeError, RuntimeError) as error:
            self._refusal = BridgeError(str(error))
            return
        with self._writing:
            self._wires = wires
            # What another replica passes on is not split: it goes out of its tensors as it came.
            direct = {sender for sender, wire in wires.items() if isinstance(wire, DirectRecvWire) and not self._relay}
            self._split = list(split_large(self._incoming, lambda message: message.sender in direct))
            # What another replica passes on is packed.
            is_split = {
                sender for sender, wire in wires.items() if isinstance(wire, RegionRecvWire) and not self._relay
            }
            self._splits = Splits(self._plan, [message for message in self._split if message.sender in is_split])
            self._messages = Messages(self._plan, [*self._split, *self._splits.packed, *self._incoming])
            closed = self._closed
        if closed:
            for wire in wires.values():
                wire.abort()

    def _receive(self, only: frozenset[str] | None, is_changes: bool, progress: Progress) -> None:
        deadline = time.monotonic() + self._timeout_s
        try:
            self._meeting.join()
            if self._refusal is not None:
                raise self._refusal
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
                # Not the engine's stream: it goes on decoding. One for all versions, as the digest keeps its weights.
                if self._beside is None:
                    self._beside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
                with torch.cuda.stream(self._beside):
                    self._digest = self._receive_rounds(only, is_changes, progress, deadline)
            else:
                self._digest = self._receive_rounds(only, is_changes, progress, deadline)
        except (BridgeError, KeyError, RuntimeError) as error:
            self._error = f"{type(error).__name__}: {error}"
            progress.fails(self._error)

    def _receive_rounds(
        self, only: frozenset[str] | None, is_changes: bool, progress: Progress, deadline: float
    ) -> int | None:
        incoming = self._incoming if is_changes else self._split
        messages = [part for message in incoming if (part := restricted(message, only)) is not None]
        rounds = [list(group) for _round, group in groupby(messages, key=lambda message: message.round)]
        checking = self._checking
        with checking.work():
            total = torch.zeros((), dtype=torch.int64, device=self._device)
        arriving = (
            receive_loop.changes(rounds, self._post, partial(apply, self._messages), deadline)
            if is_changes
            else receive_loop.whole(rounds, self._post_whole, self._messages.unpack, deadline)
        )
        for message, write in arriving:
            progress.begins(message.round)
            with self._writing:
                if self._closed:
                    raise TransferError("the wires were left while a version was being received")
                with torch.no_grad():
                    write(self._received)
                    if self._verify:
                        with checking.work():
                            # Beside the copies of what follows; nothing follows the last one.
                            is_background = message is not messages[-1]
                            total += self._messages.digest_received(
                                message, self._received, is_background=is_background
                            ).to(self._device)
        progress.ends()
        if self._device.type == "cuda":
            checking.synchronize()
            torch.cuda.current_stream(self._device).synchronize()
        return int(total.item()) & MASK if self._verify else None

    def _post(self, message: Message, nbytes: int) -> Transfer:
        return self._wires[message.sender].post_recv(nbytes)

    def _post_whole(self, message: Message) -> receive_loop.Posted:
        wire = self._wires[message.sender]
        if isinstance(wire, RegionRecvWire) and not self._relay:
            found = received_regions(
                message,
                self._splits.of(message),
                self._received,
                self._device,
                wire.accepts,
                is_aside=self._is_aside or wire.is_still_after_abort,
            )
            return receive_loop.Posted(wire.post_recv_regions(found.targets), found.staged)
        if isinstance(wire, DirectRecvWire) and self._is_aside:
            target = received_into(message, self._received)
            if target is not None:
                return receive_loop.Posted(wire.post_recv_into(target), None)
        return receive_loop.Posted(self._post(message, message.nbytes), message)

"""An engine worker's end of the data plane; knows process groups, plans and tensors, and no engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from itertools import groupby
from typing import Any

import torch
from torch import distributed as dist

from launcher.bridge.agreement import restricted
from launcher.bridge.groups import finish, init_process_group, meet
from launcher.bridge.integrity import digest_received
from launcher.bridge.reshard import Message, Plan, Receiver
from launcher.bridge.reshard.execute import unpack
from launcher.errors import BridgeError, TransferError

MASK = (1 << 64) - 1


class WeightReceiver:
    """Receives versions beside the live weights, in a thread, while the engine goes on decoding.

    Args:
        plan: the agreed plan of this replica.
        rank: this worker's rank in the replica.
        received: what messages are unpacked into, by the plan's parameter names.
        store: ``host:port`` of the trainer's store; ``group`` is the group's name there.
        address: this host's address, for gloo.
        verify: also compute the digest of what has arrived.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        rank: int,
        received: Mapping[str, torch.Tensor],
        backend: str,
        group: str,
        store: str,
        device: torch.device,
        address: str | None,
        timeout_s: float,
        verify: bool,
    ) -> None:
        self._plan = plan
        self._incoming = list(plan.incoming(Receiver(engine=0, rank=rank)))
        self._received = received
        self._device = device
        # gloo moves host memory only; the copy to a GPU is part of unpacking.
        self._wire_device = torch.device("cpu") if backend == "gloo" else device
        self._timeout_s = timeout_s
        self._verify = verify
        senders = len(plan.trainers)
        host, _, port = store.rpartition(":")
        timeout = timedelta(seconds=timeout_s)
        self._group: Any = init_process_group(
            backend,
            timeout=timeout,
            world_size=senders + len(plan.engines[0].locations),
            rank=senders + rank,
            store=dist.TCPStore(host, int(port), is_master=False, timeout=timeout, wait_for_workers=False),
            group_name=group,
            address=address,
            device=device,
        )
        self._thread: threading.Thread | None = None
        self._error: str | None = None
        self._version: int | None = None
        self._digest: int | None = None
        self._complete = False
        """Whether the shadow holds a whole version, so that a part of the next one is enough."""

        self._writing = threading.Lock()
        """Held while anything is written into ``received``."""

        self._closed = False
        self._refusal: BridgeError | None = None
        self._meeting = threading.Thread(target=self._meet, name="bridge-meeting", daemon=True)
        self._meeting.start()

    def prepare(self, version: int, names: list[str] | None) -> None:
        """Starts receiving one version, or some of its tensors; returns at once.

        Raises:
            TransferError: a version is still being received, or a part is to come before there is a whole.
        """
        if self._thread is not None and self._thread.is_alive():
            raise TransferError(f"version {self._version} is still being received")
        if names is not None and not self._complete:
            raise TransferError(f"version {version} is only a part, and no whole version has come before it")
        self._version, self._error, self._digest, self._complete = version, None, None, False
        only = None if names is None else frozenset(names)
        self._thread = threading.Thread(target=self._receive, args=(only,), name="bridge-receiver", daemon=True)
        self._thread.start()

    def status(self) -> dict[str, Any]:
        """``state`` is ``idle``, ``receiving``, ``received`` or ``failed``, with ``version``, ``error``, ``digest``."""
        if self._thread is None:
            state = "idle"
        elif self._thread.is_alive():
            state = "receiving"
        else:
            state = "failed" if self._error else "received"
        return {"state": state, "version": self._version, "error": self._error, "digest": self._digest}

    def committed(self, version: int) -> None:
        """The caller is about to write this version; from now on parts of a version may follow.

        Raises:
            TransferError: that version has not been received whole.
        """
        status = self.status()
        if status["state"] != "received" or status["version"] != version:
            raise TransferError(f"version {version} has not been received: {status}")
        self._thread, self._complete = None, True

    def drop(self) -> None:
        """Forgets what has been received; a transfer under way is left to its deadline."""
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None

    def close(self) -> None:
        """Leaves the group; nothing is received any more."""
        with self._writing:
            self._closed = True
        self._group.abort()
        # Nothing wakes a gloo operation before its deadline; its thread is left behind and writes nothing.
        wakes = self._wire_device.type == "cuda"
        for thread in (self._thread, self._meeting):
            if thread is not None and wakes:
                thread.join(timeout=5)
        if self._device.type == "cuda" and not wakes:
            torch.cuda.synchronize(self._device)

    def _meet(self) -> None:
        try:
            meet(self._group, self._device, self._timeout_s)
        except BridgeError as error:
            self._refusal = error

    def _receive(self, only: frozenset[str] | None) -> None:
        deadline = time.monotonic() + self._timeout_s
        try:
            self._meeting.join()
            if self._refusal is not None:
                raise self._refusal
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
                # Not the engine's stream: it goes on decoding.
                beside: Any = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
                with torch.cuda.stream(beside):
                    self._digest = self._receive_rounds(only, deadline)
            else:
                self._digest = self._receive_rounds(only, deadline)
        except (BridgeError, KeyError, RuntimeError) as error:
            self._error = f"{type(error).__name__}: {error}"

    def _receive_rounds(self, only: frozenset[str] | None, deadline: float) -> int | None:
        """Round by round, so that no more than one round's bytes are ever staged."""
        messages = [part for message in self._incoming if (part := restricted(message, only)) is not None]
        total = torch.zeros((), dtype=torch.int64, device=self._device)
        for _round, group in groupby(messages, key=lambda message: message.round):
            in_round = list(group)
            buffers = [torch.empty(m.nbytes, dtype=torch.uint8, device=self._wire_device) for m in in_round]
            works = [self._post(message, buffer) for message, buffer in zip(in_round, buffers, strict=True)]
            for message, buffer, work in zip(in_round, buffers, works, strict=True):
                finish(work, deadline, _describe(message))
                with self._writing:
                    if self._closed:
                        raise TransferError("the group was left while a version was being received")
                    total += self._unpack(message, buffer)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return int(total.item()) & MASK if self._verify else None

    def _post(self, message: Message, buffer: torch.Tensor) -> Any:
        try:
            return self._group.recv([buffer], message.sender, message.round)
        except RuntimeError as error:  # The sender's end is known before anything comes.
            raise TransferError(f"{_describe(message)} failed: {str(error).splitlines()[0]}") from error

    def _unpack(self, message: Message, buffer: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            unpack(message, buffer, self._received)
            if not self._verify:
                return torch.zeros((), dtype=torch.int64, device=self._device)
            return digest_received(self._plan, message, self._received).to(self._device)


def _describe(message: Message) -> str:
    return f"receiving round {message.round} from trainer rank {message.sender}"

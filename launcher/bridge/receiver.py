"""An engine worker's end of the data plane; knows process groups and tensors, and no engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

from launcher.bridge.groups import finish, init_process_group, meet
from launcher.bridge.manifest import Manifest
from launcher.errors import BridgeError, TransferError


class Receiver:
    """Receives versions into staging tensors, in a thread, while the engine goes on decoding.

    Args:
        manifest: every tensor that may come.
        group: name of the group at the store.
        store: ``host:port`` of the trainer's store.
        rank: this worker's rank in the group; the trainer is 0.
        device: where staging tensors live.
        address: this host's address, for gloo.
    """

    def __init__(
        self,
        *,
        manifest: Manifest,
        backend: str,
        group: str,
        store: str,
        rank: int,
        world_size: int,
        device: torch.device,
        address: str | None,
        timeout_s: float,
    ) -> None:
        self._manifest = {entry.name: entry for entry in manifest}
        self._device = device
        self._timeout_s = timeout_s
        host, _, port = store.rpartition(":")
        timeout = timedelta(seconds=timeout_s)
        self._group: Any = init_process_group(
            backend,
            timeout=timeout,
            world_size=world_size,
            rank=rank,
            store=dist.TCPStore(host, int(port), is_master=False, timeout=timeout, wait_for_workers=False),
            group_name=group,
            address=address,
            device=device,
        )
        self._staged: dict[str, torch.Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: str | None = None
        self._version: int | None = None
        self._refusal: BridgeError | None = None
        self._meeting = threading.Thread(target=self._meet, name="bridge-meeting", daemon=True)
        self._meeting.start()

    def prepare(self, version: int, names: list[str]) -> None:
        """Starts receiving one version; returns at once.

        Raises:
            TransferError: a version is still being received.
        """
        if self._thread is not None and self._thread.is_alive():
            raise TransferError(f"version {self._version} is still being received")
        self._version, self._error, self._staged = version, None, {}
        self._thread = threading.Thread(target=self._receive, args=(names,), name="bridge-receiver", daemon=True)
        self._thread.start()

    def status(self) -> dict[str, Any]:
        """``state`` is ``idle``, ``receiving``, ``received`` or ``failed``, with ``version`` and ``error``."""
        if self._thread is None:
            state = "idle"
        elif self._thread.is_alive():
            state = "receiving"
        else:
            state = "failed" if self._error else "received"
        return {"state": state, "version": self._version, "error": self._error}

    def take(self, version: int) -> list[tuple[str, torch.Tensor]]:
        """The staged tensors of a version, aliases included; they are handed over and forgotten here.

        Raises:
            TransferError: that version has not been received whole.
        """
        status = self.status()
        if status["state"] != "received" or status["version"] != version:
            raise TransferError(f"version {version} is not staged: {status}")
        staged, self._staged, self._thread = self._staged, {}, None
        return list(self._with_aliases(staged))

    def drop(self) -> None:
        """Forgets what is staged; a transfer under way is left to its deadline."""
        if self._thread is not None and not self._thread.is_alive():
            self._staged, self._thread = {}, None

    def close(self) -> None:
        """Leaves the group; whatever it still does ends with an error."""
        self._group.abort()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _meet(self) -> None:
        try:
            meet(self._group, self._device, self._timeout_s)
        except BridgeError as error:
            self._refusal = error

    def _receive(self, names: list[str]) -> None:
        deadline = time.monotonic() + self._timeout_s
        try:
            self._meeting.join()
            if self._refusal is not None:
                raise self._refusal
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
            for name in names:
                entry = self._manifest[name]
                if entry.alias_of is not None:
                    continue
                tensor = torch.empty(entry.shape, dtype=getattr(torch, entry.dtype), device=self._device)
                finish(self._group.broadcast(tensor, 0), deadline, f"receiving {name}")
                self._staged[name] = tensor
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        except (BridgeError, KeyError, RuntimeError) as error:
            self._error = f"{type(error).__name__}: {error}"

    def _with_aliases(self, staged: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        yield from staged.items()
        for entry in self._manifest.values():
            if entry.alias_of is not None and entry.alias_of in staged:
                yield entry.name, staged[entry.alias_of]

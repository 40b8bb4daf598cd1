"""An engine worker's side of the bridge's requests, whatever the engine: binds, joins, receives, writes."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from launcher.bridge.engine.receiver import WeightReceiver
from launcher.bridge.negotiation import TrainerFacts, replica_plan
from launcher.bridge.plan import fingerprints
from launcher.bridge.settings import Mode
from launcher.bridge.transport.base import Meeting, Pair
from launcher.bridge.transport.choose import Place, choose, choose_all, here
from launcher.bridge.weightmap import Binding
from launcher.common.errors import BridgeError, TransferError

if TYPE_CHECKING:
    from launcher.bridge.manifest import Manifest

logger = logging.getLogger(__name__)


class Destination(Protocol):
    """Where a version is received, and what puts it into use."""

    received: dict[str, torch.Tensor]
    """By the names of the plan's parameters."""

    @property
    def extra_bytes(self) -> int:
        """Memory beyond what the engine serves from."""

    def commit(self) -> None:
        """Puts what was received into use. The engine must not run a forward pass meanwhile."""


class Worker:
    """What one worker of a replica does for the bridge; ``bridge_call`` is its one public method.

    It runs in the worker's loop, so never during a forward pass, and must therefore be quick: only ``commit`` does work
    there. Its answer is JSON and holds ``error`` instead of raising, so that one worker's failure reaches the trainer
    as words and does not take the engine down.

    An engine's own class says which parameters there are, in :meth:`_bridge_learn` and :meth:`_bridge_make_writer`.
    """

    rank: int
    device: torch.device
    _bridge_facts: TrainerFacts | None = None
    _bridge_binding: Binding | None = None
    _bridge_writer: Destination | None = None
    _bridge_receiver: WeightReceiver | None = None

    def _bridge_learn(self, manifest: Manifest) -> Binding:
        """How the trainer's tensors map into this worker's.

        Raises:
            BridgeError: they do not.
        """
        raise NotImplementedError

    def _bridge_make_writer(self, binding: Binding, mode: Mode) -> Destination:
        """What puts a received version into this worker's parameters."""
        raise NotImplementedError

    def bridge_call(self, op: str, request: dict[str, Any]) -> dict[str, Any]:
        """One request to this worker; ``{"error": text}`` if it failed."""
        operations = {
            "bind": self._bridge_bind,
            "connect": self._bridge_connect,
            "relay": self._bridge_relay,
            "prepare": self._bridge_prepare,
            "status": self._bridge_status,
            "stage": self._bridge_stage,
            "commit": self._bridge_commit,
            "drop": self._bridge_drop,
            "disconnect": self._bridge_disconnect,
        }
        try:
            return operations[op](request)
        except (BridgeError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            return {"error": f"worker {self.rank}: {type(error).__name__}: {error}"}

    def _bridge_bind(self, request: dict[str, Any]) -> dict[str, Any]:
        self._bridge_facts = TrainerFacts.from_json(request["trainer"])
        self._bridge_binding = self._bridge_learn(self._bridge_facts.manifest)
        logger.info("bridge: %s", self._bridge_binding.describe())
        location = [int(os.environ.get("LAUNCHER_NODE_RANK", "0")), self._bridge_gpu()]
        place = here(self.device)
        return {
            "binding": self._bridge_binding.to_json(),
            "location": location,
            "place": [place.host, place.device],
        }

    def _bridge_connect(self, request: dict[str, Any]) -> dict[str, Any]:
        self._bridge_disconnect(request)
        if self._bridge_facts is None or self._bridge_binding is None:
            raise TransferError("this worker has not been bound")
        workers = request["workers"]
        if Binding.from_json(workers[self.rank]["binding"]).digest != self._bridge_binding.digest:
            raise TransferError("the trainer has another binding of this worker than the worker itself")
        plan = replica_plan(self._bridge_facts, workers)
        if plan.digest != request["plan"]:
            # The trainer names the first difference from these.
            return {"plan": plan.digest, "fingerprints": fingerprints(plan)}
        self._bridge_writer = self._bridge_make_writer(self._bridge_binding, Mode(request["mode"]))
        self._bridge_receiver = WeightReceiver(
            plan=plan,
            rank=self.rank,
            received=self._bridge_writer.received,
            meeting=_meeting(request),
            transports=choose_all(
                request["transport"], [Place(*place) for place in request["places"]], self.rank, here(self.device)
            ),
            relay=None if request["relay"] is None else self._bridge_ways(request, request["relay"], is_sender=False),
            device=self.device,
            # The trainer begins to send when every replica is prepared, or has let the same time go by.
            timeout_s=2 * float(request["timeout_s"]),
            verify=bool(request["verify"]),
            is_aside=Mode(request["mode"]) is not Mode.INPLACE,
        )
        return {"plan": plan.digest, "extra_bytes": self._bridge_writer.extra_bytes}

    def _bridge_relay(self, request: dict[str, Any]) -> dict[str, Any]:
        ways = self._bridge_ways(request, request["places"], is_sender=True)
        self._bridge_joined().relay_to(int(request["child"]), _meeting(request), ways)
        return {}

    def _bridge_ways(
        self, request: dict[str, Any], places: Sequence[Sequence[int]], *, is_sender: bool
    ) -> tuple[str, ...]:
        """Between this worker and its like in another replica."""
        pair, ours, other = Pair(sender=self.rank, receiver=self.rank), here(self.device), Place(*places[self.rank])
        return choose(request["transport"], pair, *((ours, other) if is_sender else (other, ours)))

    def _bridge_prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        self._bridge_joined().prepare(int(request["version"]), request["names"], request["base"])
        return {}

    def _bridge_status(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._bridge_joined().status()

    def _bridge_stage(self, request: dict[str, Any]) -> dict[str, Any]:
        """Whatever can be done, and can fail, between the last byte and the pause."""
        return {}

    def _bridge_commit(self, request: dict[str, Any]) -> dict[str, Any]:
        begin = time.monotonic()
        self._bridge_joined().committed(int(request["version"]))
        assert self._bridge_writer is not None
        self._bridge_writer.commit()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return {"seconds": time.monotonic() - begin}

    def _bridge_drop(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._bridge_receiver is not None:
            self._bridge_receiver.drop()
        return {}

    def _bridge_disconnect(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._bridge_receiver is not None:
            self._bridge_receiver.close()
            self._bridge_receiver, self._bridge_writer = None, None
        return {}

    def _bridge_gpu(self) -> int:
        return self.device.index or 0 if self.device.type == "cuda" else self.rank

    def _bridge_joined(self) -> WeightReceiver:
        if self._bridge_receiver is None:
            raise TransferError("this worker has not joined the bridge")
        return self._bridge_receiver


def _meeting(request: dict[str, Any]) -> Meeting:
    return Meeting(
        group=request["group"],
        secret=request["secret"],
        store=request["store"],
        directory=None if request["directory"] is None else Path(request["directory"]),
        address=os.environ.get("LAUNCHER_ADDRESS"),
        timeout_s=float(request["timeout_s"]),
    )

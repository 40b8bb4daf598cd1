"""An engine worker's side of the bridge's operations, whatever the engine: binds, connects, receives, writes."""

from __future__ import annotations

import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from launcher.bridge import protocol as p
from launcher.bridge.engine.receiver import WeightReceiver
from launcher.bridge.negotiation import replica_plan
from launcher.bridge.plan import Location, fingerprints, plan_digest
from launcher.bridge.settings import Mode
from launcher.bridge.transport.base import Meeting, Pair
from launcher.bridge.transport.choose import Place, choose, choose_all, here
from launcher.bridge.weightmap import WeightMap
from launcher.common.codec import from_builtins, to_builtins
from launcher.common.errors import BridgeError, TransferError

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


class EngineWorker(ABC):
    """What one worker of a replica does for the bridge, for one thing that has versions of its own.

    :meth:`bridge_call` runs in the worker's loop, so never during a forward pass, and must therefore be quick: only a
    commit does work there. Its reply is JSON and holds :data:`launcher.bridge.protocol.FAILED` instead of an exception,
    so that one worker's failure reaches the trainer as text and does not end the engine.

    An engine's own class defines which parameters there are: :meth:`learn` and :meth:`make_writer`.
    """

    rank: int
    """In the replica."""

    device: torch.device
    _spec: p.TrainerSpec | None = None
    _weight_map: WeightMap | None = None
    _writer: Destination | None = None
    _receiver: WeightReceiver | None = None

    @abstractmethod
    def learn(self, manifest: p.Manifest) -> WeightMap:
        """How the trainer's tensors map into this worker's.

        Raises:
            BridgeError: they do not.
        """

    @abstractmethod
    def make_writer(self, weight_map: WeightMap, mode: Mode) -> Destination:
        """What puts a received version into this worker's parameters."""

    def stage(self, request: p.StageAdapter) -> None:
        """Does what can be done, and can fail, between the last byte and the pause of an adapter's update."""
        raise BridgeError("only an adapter is staged")

    def bridge_call(self, operation: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """One operation of :data:`launcher.bridge.protocol.TO_WORKER` with the request's fields; the reply's fields."""
        handlers: dict[type[p.BridgeRequest[Any]], Callable[[Any], Any]] = {
            p.Bind: self._bind,
            p.Connect: self._connect,
            p.RelayTo: self._relay,
            p.Prepare: self._prepare,
            p.GetStatus: self._status,
            p.StageAdapter: self.stage,
            p.Commit: self._commit,
            p.Drop: self._drop,
            p.Disconnect: self._disconnect,
        }
        try:
            kind = p.TO_WORKER[operation]
            reply = handlers[kind](from_builtins(dict(fields), kind))
            answer: dict[str, Any] = to_builtins(p.WorkerDone() if reply is None else reply)
            return answer
        except (BridgeError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            return {p.FAILED: f"worker {self.rank}: {type(error).__name__}: {error}"}

    def _bind(self, request: p.Bind) -> p.WorkerSpec:
        self._spec = request.trainer
        self._weight_map = self.learn(self._spec.manifest)
        logger.info("bridge: %s", self._weight_map.describe())
        gpu = self.device.index or 0 if self.device.type == "cuda" else self.rank
        return p.WorkerSpec(
            weight_map=self._weight_map.to_json(),
            location=Location(node=int(os.environ.get("LAUNCHER_NODE_RANK", "0")), gpu=gpu),
            place=here(self.device),
        )

    def _connect(self, request: p.Connect) -> p.WorkerConnected:
        self._close()
        if self._spec is None or self._weight_map is None:
            raise TransferError("this worker has not been bound")
        if WeightMap.from_json(request.workers[self.rank].weight_map).digest != self._weight_map.digest:
            raise TransferError("the trainer has another weight map of this worker than the worker itself")
        plan = replica_plan(self._spec, request.workers)
        digest = plan_digest(plan)
        if digest != request.plan:
            # The trainer names the first difference from these.
            return p.WorkerConnected(plan=digest, fingerprints=fingerprints(plan))
        mode = Mode(request.mode)
        self._writer = self.make_writer(self._weight_map, mode)
        relay = None if request.relay_from is None else self._candidates(request, request.relay_from, is_sender=False)
        self._receiver = WeightReceiver(
            plan=plan,
            rank=self.rank,
            received=self._writer.received,
            meeting=_meeting(request),
            transports=choose_all(request.transport, request.places, self.rank, here(self.device)),
            relay=relay,
            device=self.device,
            # The trainer begins to send when every replica is prepared, or has let the same time go by.
            timeout_s=2 * request.timeout_s,
            verify=request.verify,
            is_aside=mode is not Mode.INPLACE,
        )
        return p.WorkerConnected(plan=digest, extra_bytes=self._writer.extra_bytes)

    def _relay(self, request: p.RelayTo) -> None:
        candidates = self._candidates(request, request.places, is_sender=True)
        self._connected().relay_to(request.child, _meeting(request), candidates)

    def _candidates(self, request: p.LinkRequest[Any], places: Sequence[Place], *, is_sender: bool) -> tuple[str, ...]:
        """Transports between this worker and the same rank of another replica."""
        pair, own, other = Pair(sender=self.rank, receiver=self.rank), here(self.device), places[self.rank]
        return choose(request.transport, pair, *((own, other) if is_sender else (other, own)))

    def _prepare(self, request: p.Prepare) -> None:
        names = None if request.names is None else list(request.names)
        self._connected().prepare(request.version, names, request.base)

    def _status(self, _request: p.GetStatus) -> p.WorkerStatus:
        return p.WorkerStatus(**self._connected().status())

    def _commit(self, request: p.Commit) -> None:
        begin = time.monotonic()
        self._connected().committed(request.version)
        assert self._writer is not None
        self._writer.commit()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        logger.debug("bridge: wrote version %d in %.3f s", request.version, time.monotonic() - begin)

    def _drop(self, _request: p.Drop) -> None:
        if self._receiver is not None:
            self._receiver.drop()

    def _disconnect(self, _request: p.Disconnect) -> None:
        self._close()

    def _close(self) -> None:
        if self._receiver is not None:
            self._receiver.close()
            self._receiver, self._writer = None, None

    def _connected(self) -> WeightReceiver:
        if self._receiver is None:
            raise TransferError("this worker has not joined the bridge")
        return self._receiver


def _meeting(request: p.LinkRequest[Any]) -> Meeting:
    return Meeting(
        group=request.group,
        secret=request.secret,
        store=request.store,
        directory=None if request.directory is None else Path(request.directory),
        address=os.environ.get("LAUNCHER_ADDRESS"),
        timeout_s=request.timeout_s,
    )

"""One end of a transfer, in a process that a test can stop and kill.

``python -m tests.integration.bridge.transfer_process`` answers each line of JSON, a command, with one line of JSON, and
ends with its standard input. One process may be several ends, each under the name of its group.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch

from launcher.bridge.codec.delta_encode import Base
from launcher.bridge.codec.local import LocalTensor
from launcher.bridge.engine.receiver import WeightReceiver
from launcher.bridge.plan import fingerprints, plan_digest
from launcher.bridge.trainer.replica_sender import ReplicaSender, largest_messages
from launcher.bridge.transport.links import connect_senders
from launcher.common.errors import BridgeError
from tests.integration.bridge.link_process import meeting_of, ways_of
from tests.integration.bridge.transfer_case import TransferCase

Tensor = TypeVar("Tensor", torch.Tensor, LocalTensor)


def content(tensor: torch.Tensor) -> str:
    """Digest of a tensor's bytes."""
    flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()


def say(line: Mapping[str, Any]) -> None:
    """One line to the test."""
    print(json.dumps(line), flush=True)


class Tensors(Mapping[str, Tensor]):
    """Tensors by name that do something on the way.

    Args:
        hold: says ``{"held": name}`` when this tensor is asked for, and then never gives it.
        flip: ``name``, ``byte`` and ``bit``: one bit is wrong the ``times``-th time that the tensor is asked for (0 is
            the first), in place if ``stays``.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], *, hold: str | None = None, flip: dict[str, Any] | None = None
    ) -> None:
        self._tensors = tensors
        self._hold = hold
        self._flip = flip
        self._asked = 0

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        if name == self._hold:
            say({"held": name})
            threading.Event().wait()
        if self._flip is not None and name == self._flip["name"]:
            self._asked += 1
            if self._asked - 1 == self._flip["times"]:
                if not self._flip["stays"]:
                    tensor = tensor.copy(torch.clone) if isinstance(tensor, LocalTensor) else tensor.clone()
                piece = tensor.pieces[0][1] if isinstance(tensor, LocalTensor) else tensor
                piece.view(-1).view(torch.uint8)[self._flip["byte"]] ^= 1 << self._flip["bit"]
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class Sending:
    """A trainer rank's end."""

    def __init__(self, command: dict[str, Any]) -> None:
        self.case = TransferCase(**command["case"])
        self.rank = int(command["rank"])
        self.device = torch.device(command["device"])
        largest = largest_messages(self.case.plan, self.rank)
        transports = dict.fromkeys(largest, ways_of(command))
        wires = connect_senders(meeting_of(command), self.rank, transports, largest, self.device)
        self.end = ReplicaSender(plan=self.case.plan, rank=self.rank, wires=wires, verify=True)

        self.on_device: dict[str, LocalTensor] = {}
        self.base = Base()

    def send(self, command: dict[str, Any]) -> dict[str, Any]:
        """Sends a version, or what of it has changed; what its bytes and digests were, and how long that took."""
        state = self.case.shards(self.case.state(command["version"], command.get("density")), self.rank)
        self.on_device = {name: tensor.copy(lambda piece: piece.to(self.device)) for name, tensor in state.items()}
        shards = Tensors(self.on_device, hold=command.get("hold"), flip=command.get("flip"))
        base = self.base.shards if command.get("base") is not None else None
        only = frozenset(command["only"]) if command.get("only") is not None else None
        begin = time.monotonic()
        try:
            sent = self.end.send(shards, only, begin + command["timeout_s"], base)
        except BridgeError as error:
            return {"error": f"{type(error).__name__}: {error}", "seconds": time.monotonic() - begin}
        return {
            "bytes": sent.bytes,
            "changed": sent.changed,
            "compared": sent.compared,
            "digests": sent.digests().tolist(),
            "seconds": time.monotonic() - begin,
        }

    def advance(self, command: dict[str, Any]) -> dict[str, Any]:
        """What was sent last has been committed."""
        only = frozenset(command["only"]) if command.get("only") is not None else None
        self.base.advance(command["version"], self.on_device, only, [self.case.plan])
        return {"bytes": self.base.nbytes}

    def trim(self, _command: dict[str, Any]) -> dict[str, Any]:
        """Frees the last version's tensors, and the memory that they lay in."""
        self.on_device = {}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return {}

    def close(self, _command: dict[str, Any]) -> dict[str, Any]:
        """Leaves the group."""
        self.end.close()
        self.on_device = {}
        return {}


class Receiving:
    """An engine worker's end: what arrives lies beside the live tensors until it is committed."""

    def __init__(self, command: dict[str, Any]) -> None:
        self.case = TransferCase(**command["case"])
        self.device = torch.device(command["device"])
        needs = self.case.needs(command["rank"])
        shadow, self.live = (
            {p.name: torch.zeros(p.shape, dtype=getattr(torch, p.dtype), device=self.device) for p in needs}
            for _ in range(2)
        )
        self.shadow = Tensors(shadow, hold=command.get("hold"), flip=command.get("flip"))
        self.end = WeightReceiver(
            plan=self.case.plan,
            rank=command["rank"],
            received=self.shadow,
            meeting=meeting_of(command),
            transports=[ways_of(command)] * self.case.trainers,
            device=self.device,
            timeout_s=command["timeout_s"],
            verify=True,
            is_aside=True,
        )

    def prepare(self, command: dict[str, Any]) -> dict[str, Any]:
        """Starts to receive a version."""
        try:
            self.end.prepare(command["version"], command.get("only"), command.get("base"))
        except BridgeError as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return {}

    def wait(self, command: dict[str, Any]) -> dict[str, Any]:
        """Its status once it no longer receives, and how long that took."""
        begin = time.monotonic()
        while self.end.status()["state"] == "receiving" and time.monotonic() < begin + command["timeout_s"]:
            time.sleep(0.002)
        return {**self.end.status(), "seconds": time.monotonic() - begin}

    def commit(self, command: dict[str, Any]) -> dict[str, Any]:
        """Copies what has arrived into the live tensors."""
        try:
            self.end.committed(command["version"])
        except BridgeError as error:
            return {"error": f"{type(error).__name__}: {error}"}
        for name, tensor in self.live.items():
            tensor.copy_(self.shadow[name])
        return {}

    def memory(self, _command: dict[str, Any]) -> dict[str, Any]:
        """Bytes that torch has given out on its GPU."""
        return {"gpu_bytes": torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0}

    def drop(self, _command: dict[str, Any]) -> dict[str, Any]:
        """Forgets what has arrived."""
        self.end.drop()
        return {}

    def contents(self, _command: dict[str, Any]) -> dict[str, Any]:
        """Digests of the live tensors' bytes."""
        return {name: content(tensor) for name, tensor in self.live.items()}

    def close(self, _command: dict[str, Any]) -> dict[str, Any]:
        """Leaves the group; how long that took."""
        begin = time.monotonic()
        self.end.close()
        return {"seconds": time.monotonic() - begin}


ENDS: dict[str, Sending | Receiving] = {}


def answer(command: dict[str, Any]) -> dict[str, Any]:
    """Does what a command says."""
    match command["do"]:
        case "plan":
            plan = TransferCase(**command["case"]).plan
            return {"digest": plan_digest(plan), "fingerprints": fingerprints(plan)}
        case "compute":
            # Whether the device still takes and finishes work.
            device = torch.device(command["device"])
            total = float(torch.ones(1000, device=device).sum())
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return {"total": total}
        case "join":
            try:
                role = Sending if command["role"] == "sender" else Receiving
                ENDS[command["group"]] = role(command)
            except BridgeError as error:
                return {"error": f"{type(error).__name__}: {error}"}
            return {"joined": command["group"]}
        case "close":
            return ENDS.pop(command["group"]).close(command)
        case do:
            found: dict[str, Any] = getattr(ENDS[command["group"]], do)(command)
            return found


def main() -> None:
    """Says that it is there and serves commands until standard input ends."""
    torch.set_num_threads(1)
    say({"ready": True})
    for line in sys.stdin:
        say(answer(json.loads(line)))


if __name__ == "__main__":
    main()

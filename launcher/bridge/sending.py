"""One trainer rank's end of the data plane: its messages of one version to one replica."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch

from launcher.bridge.agreement import restricted
from launcher.bridge.groups import finish
from launcher.bridge.integrity import digest_sent
from launcher.bridge.reshard import Message, Plan
from launcher.bridge.reshard.execute import pack
from launcher.errors import TransferError

IN_FLIGHT = 4
"""Messages that wait for their receivers at a time; bounds the sender's memory to as many packed messages."""


class ReplicaSender:
    """Sends versions to one replica.

    Args:
        plan: the agreed plan of this replica.
        rank: this trainer rank.
        group: joined by all trainer ranks and the replica's workers.
        device: where messages are packed.
        verify: also compute the digest of what is sent.
    """

    def __init__(self, *, plan: Plan, rank: int, group: Any, device: torch.device, verify: bool) -> None:
        self.plan = plan
        self._outgoing = list(plan.outgoing(rank))
        self._group = group
        self._device = device
        self._verify = verify
        self.workers = len(plan.engines[0].locations)

    def send(self, shards: Mapping[str, torch.Tensor], only: frozenset[str] | None, deadline: float) -> Sent:
        """Sends this rank's messages.

        Args:
            shards: what this rank holds, by name.
            only: these tensors; None for all.
            deadline: ``time.monotonic()`` by which the last one must have gone.

        Raises:
            TransferError: one did not go in time.
        """
        sent = Sent(self.workers)
        waiting: deque[tuple[Message, Any, torch.Tensor]] = deque()
        for message in self._outgoing:
            part = restricted(message, only)
            if part is None:
                continue
            buffer = torch.empty(part.nbytes, dtype=torch.uint8, device=self._device)
            with torch.no_grad():
                pack(self.plan, part, shards, buffer)
                if self._verify:
                    sent.add_digest(part.receiver.rank, digest_sent(self.plan, part, shards))
            if self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()
            waiting.append((part, self._post(part, buffer), buffer))
            sent.bytes += part.nbytes
            while len(waiting) >= IN_FLIGHT:
                _finish(waiting.popleft(), deadline)
        while waiting:
            _finish(waiting.popleft(), deadline)
        return sent

    def _post(self, message: Message, buffer: torch.Tensor) -> Any:
        try:
            return self._group.send([buffer], len(self.plan.trainers) + message.receiver.rank, message.round)
        except RuntimeError as error:  # The receiver's end is known before anything is sent.
            raise TransferError(f"{_describe(message)} failed: {str(error).splitlines()[0]}") from error

    def close(self) -> None:
        """Leaves the group."""
        self._group.abort()


class Sent:
    """What one rank sent to one replica: bytes, and a digest for each worker."""

    def __init__(self, workers: int) -> None:
        self.bytes = 0
        self._digests: list[torch.Tensor | int] = [0] * workers

    def add_digest(self, worker: int, value: torch.Tensor) -> None:
        """Adds one message's sum to its receiver's, modulo 2 ** 64."""
        self._digests[worker] = self._digests[worker] + value

    def digests(self) -> torch.Tensor:
        """int64, one for each worker."""
        return torch.stack([torch.as_tensor(value, dtype=torch.int64).cpu() for value in self._digests])


def _finish(entry: tuple[Message, Any, torch.Tensor], deadline: float) -> None:
    message, work, _buffer = entry
    finish(work, deadline, _describe(message))


def _describe(message: Message) -> str:
    return f"sending round {message.round} to worker {message.receiver.rank}"

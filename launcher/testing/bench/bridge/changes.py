"""The bridge's own data plane when only a part of the elements has changed: ``bridge.update=delta``."""

from __future__ import annotations

import time
import zlib

import torch

from launcher.bridge.codec.delta.base import Base
from launcher.bridge.plan import Plan
from launcher.bridge.trainer.replica_sender import Sent
from launcher.testing.bench.bridge.ours import TIMEOUT_S, Ours
from launcher.testing.bench.bridge.stage import Stage


class DeltaMethod(Ours):
    """The same update each time: from a version that differs in a share of its elements, strewn at random, to the
    trainer's. What is measured includes the comparison, the digest of the whole, and the sender's copy afterwards.
    """

    def __init__(self, stage: Stage, plan: Plan, shadow: dict[str, torch.Tensor], transport: str) -> None:
        super().__init__(stage, plan, shadow, transport, verify=True, name=self.title_of(transport, stage.density))
        self._plan = plan
        self._base = Base()
        self._committed: int | None = None
        if stage.is_sender:
            self._old = {name: _changed(name, tensor, stage.density) for name, tensor in stage.tensors.items()}

    @staticmethod
    def title_of(transport: str, density: float) -> str:
        """Its name."""
        return f"ours: {transport}, {100 * density:g} % changed, verified"

    @staticmethod
    def is_title(name: str) -> bool:
        """Whether a name is that of such a way."""
        return "% changed" in name

    def prepare(self) -> None:
        if self._committed is None:
            self._receive_old()
        self._version += 1
        if self.stage.is_sender:
            self._base.advance(-self._version, self._old, None, [self._plan])  # back to where it was
            return
        for name, tensor in self._before.items():
            self._shadow[name].copy_(tensor)
        self._receiver.prepare(self._version, None, self._committed)

    def once(self) -> None:
        super().once()
        if not self.stage.is_sender:
            self._receiver.committed(self._version)
        self._committed = self._version

    def _send(self) -> Sent:
        deadline = time.monotonic() + TIMEOUT_S
        sent = self._sender.send(self.stage.tensors, None, deadline, self._base.shards)
        self._base.advance(self._version, self.stage.tensors, None, [self._plan])
        return sent

    def _receive_old(self) -> None:
        """The version before, whole, in the measurement's first and unmeasured turn."""
        self._version, self._committed = 1, 1
        if self.stage.is_sender:
            self._sender.send(self._old, None, time.monotonic() + TIMEOUT_S)
            return
        self._receiver.prepare(1, None)
        self._receiver.wait(TIMEOUT_S)
        self._receiver.committed(1)
        self._before = {name: tensor.clone() for name, tensor in self._shadow.items()}


def _changed(name: str, tensor: torch.Tensor, density: float) -> torch.Tensor:
    generator = torch.Generator(device=tensor.device).manual_seed(zlib.crc32(name.encode()) + 1)
    chosen = torch.rand(tensor.shape, generator=generator, device=tensor.device) < density
    return torch.where(chosen, -tensor, tensor)

"""The bridge's own data plane, in each transport."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping

import torch
from torch import distributed as dist

from launcher.bridge.codec.delta_encode import Base
from launcher.bridge.codec.local import LocalTensor
from launcher.bridge.engine.receiver import WeightReceiver
from launcher.bridge.plan import Engine, Location, Plan, place, reshard
from launcher.bridge.plan.sharding import replicated
from launcher.bridge.settings import ROUND_BYTES
from launcher.bridge.trainer.replica_sender import ReplicaSender, Sent, largest_messages
from launcher.bridge.transport.base import Meeting
from launcher.bridge.transport.choose import Place, here, joins, possible
from launcher.bridge.transport.links import connect_senders
from launcher.common.errors import TransferError
from launcher.testing.bench.bridge.context import SENDER, Context, Method
from launcher.testing.bench.engine_layout import Slice

TIMEOUT_S = 120.0
MASK = (1 << 64) - 1


class LauncherBridge(Method):
    """From the trainer's tensors into a shadow of every worker's fused ones, sliced while they travel."""

    def __init__(
        self,
        context: Context,
        plan: Plan,
        shadow: dict[str, torch.Tensor],
        transport: str,
        *,
        verify: bool,
        name: str | None = None,
    ) -> None:
        self.name = name or self.title(transport, verify)
        self.context = context
        self._verify = verify
        self._version = 0
        self._digests = torch.zeros(context.world_size - 1, dtype=torch.int64)
        meeting = Meeting(
            group=self.name,
            secret="measured",
            store=context.store,
            directory=context.directory,
            address="127.0.0.1",
            timeout_s=TIMEOUT_S,
        )
        workers = range(context.world_size - 1)
        if context.is_sender:
            largest = largest_messages(plan, SENDER)
            wires = connect_senders(meeting, SENDER, dict.fromkeys(largest, (transport,)), largest, context.device)
            self._sender = ReplicaSender(plan=plan, rank=SENDER, wires=wires, verify=verify)
        else:
            worker = workers[context.rank - 1]
            self._shadow = shadow
            self._receiver = WeightReceiver(
                plan=plan,
                rank=worker,
                received=self._shadow,
                meeting=meeting,
                transports=[(transport,)],
                device=context.device,
                timeout_s=TIMEOUT_S,
                verify=verify,
                is_aside=True,
            )

    @staticmethod
    def title(transport: str, verify: bool) -> str:
        """Its name."""
        return f"ours: {transport}{', verified' if verify else ''}"

    def prepare(self) -> None:
        self._version += 1
        if not self.context.is_sender:
            self._receiver.drop()
            # What another method left must not pass for what this one sends.
            for tensor in self._shadow.values():
                tensor.view(-1)[:1].fill_(float(self._version))
            self._receiver.prepare(self._version, None)

    def once(self) -> None:
        self._digests.zero_()
        if self.context.is_sender:
            sent = self._send()
            self.sent_bytes = sent.bytes
            if self._verify:
                self._digests += sent.digests()
            return
        self._receiver.wait(TIMEOUT_S)
        status = self._receiver.status()
        if status["state"] != "received":
            raise TransferError(f"{self.name}: {status}")
        if self._verify:
            self._digests[self.context.rank - 1] = -_signed(status["digest"])

    def _send(self) -> Sent:
        return self._sender.send(_local(self.context.tensors), None, time.monotonic() + TIMEOUT_S)

    def check(self) -> None:
        dist.all_reduce(self._digests)
        assert not self._verify or not self._digests.any(), f"{self.name}: what arrived is not what was sent"

    def close(self) -> None:
        if self.context.is_sender:
            self._sender.close()
        else:
            self._receiver.close()
            self._shadow = {}


def received_tensors(context: Context, plan: Plan) -> dict[str, torch.Tensor]:
    """What a worker receives into, by every transport in turn; nothing at the trainer."""
    if context.is_sender:
        return {}
    needs = plan.engines[0].parameters[context.rank - 1]
    return {p.name: torch.zeros(p.shape, dtype=getattr(torch, p.dtype), device=context.device) for p in needs}


def launcher_methods(context: Context) -> list[tuple[str, bool]]:
    """The transports that can join the trainer with every worker, with and without the digest."""
    mine = here(context.device)
    table = torch.zeros(context.world_size, 2, dtype=torch.int64)
    table[context.rank] = torch.tensor([mine.host, mine.device])
    dist.all_reduce(table)
    places = [Place(*map(int, row)) for row in table.tolist()]
    names = [
        name
        for name in possible(context.device.type)
        if all(joins(name, places[SENDER], worker) for worker in places[1:])
    ]
    return [(name, verify) for name in names for verify in (False, True)]


def plan_of(context: Context) -> Plan:
    """The plan from one trainer rank to the workers, which share the model."""
    workers = context.world_size - 1
    engine = Engine(
        parameters=tuple(context.model.parameters(Slice(rank=rank, size=workers)) for rank in range(workers)),
        locations=tuple(Location(node=0, gpu=rank + 1) for rank in range(workers)),
    )
    sources = place(context.model.tensors(), [(".*", replicated(1))])
    return reshard(
        sources,
        [engine],
        [Location(node=0, gpu=0)],
        round_bytes=context.round_bytes or ROUND_BYTES[context.device.type],
    )


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


class DeltaMethod(LauncherBridge):
    """``bridge.update=delta``: the same update each time; a random share of the elements has changed.

    What is measured includes the comparison, the digest of the whole, and the sender's copy afterwards.
    """

    def __init__(self, context: Context, plan: Plan, shadow: dict[str, torch.Tensor], transport: str) -> None:
        super().__init__(context, plan, shadow, transport, verify=True, name=self.title_of(transport, context.density))
        self._plan = plan
        self._base = Base()
        self._committed: int | None = None
        if context.is_sender:
            self._old = {name: _changed(name, tensor, context.density) for name, tensor in context.tensors.items()}

    @staticmethod
    def title_of(transport: str, density: float) -> str:
        """Its name."""
        return f"ours: {transport}, {100 * density:g} % changed, verified"

    @staticmethod
    def is_title(name: str) -> bool:
        """Whether a name is that of such a method."""
        return "% changed" in name

    def prepare(self) -> None:
        if self._committed is None:
            self._receive_old()
        self._version += 1
        if self.context.is_sender:
            self._base.advance(-self._version, _local(self._old), None, [self._plan])  # back to where it was
            return
        for name, tensor in self._before.items():
            self._shadow[name].copy_(tensor)
        self._receiver.prepare(self._version, None, self._committed)

    def once(self) -> None:
        super().once()
        if not self.context.is_sender:
            self._receiver.committed(self._version)
        self._committed = self._version

    def _send(self) -> Sent:
        deadline = time.monotonic() + TIMEOUT_S
        sent = self._sender.send(_local(self.context.tensors), None, deadline, self._base.shards)
        self._base.advance(self._version, _local(self.context.tensors), None, [self._plan])
        return sent

    def _receive_old(self) -> None:
        """The version before, whole, in the measurement's first and unmeasured turn."""
        self._version, self._committed = 1, 1
        if self.context.is_sender:
            self._sender.send(_local(self._old), None, time.monotonic() + TIMEOUT_S)
            return
        self._receiver.prepare(1, None)
        self._receiver.wait(TIMEOUT_S)
        self._receiver.committed(1)
        self._before = {name: tensor.clone() for name, tensor in self._shadow.items()}


def _changed(name: str, tensor: torch.Tensor, density: float) -> torch.Tensor:
    generator = torch.Generator(device=tensor.device).manual_seed(zlib.crc32(name.encode()) + 1)
    chosen = torch.rand(tensor.shape, generator=generator, device=tensor.device) < density
    return torch.where(chosen, -tensor, tensor)


def _local(tensors: Mapping[str, torch.Tensor]) -> dict[str, LocalTensor]:
    return {name: LocalTensor.whole(tensor) for name, tensor in tensors.items()}

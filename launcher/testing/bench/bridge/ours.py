"""The bridge's own data plane, in each transport."""

from __future__ import annotations

import time

import torch
from torch import distributed as dist

from launcher.bridge.engine.receiver import WeightReceiver
from launcher.bridge.plan import Engine, Location, Plan, Slice, place, reshard
from launcher.bridge.plan.sharding import replicated
from launcher.bridge.settings import ROUND_BYTES
from launcher.bridge.trainer.replica_sender import ReplicaSender, Sent, largest_messages
from launcher.bridge.transport.base import Meeting
from launcher.bridge.transport.choose import Place, here, joins, possible
from launcher.bridge.transport.links import connect_senders
from launcher.common.errors import TransferError
from launcher.testing.bench.bridge.stage import SENDER, Method, Stage

TIMEOUT_S = 120.0
MASK = (1 << 64) - 1


class Ours(Method):
    """From the trainer's tensors into a shadow of every worker's fused ones, sliced on the way."""

    def __init__(
        self,
        stage: Stage,
        plan: Plan,
        shadow: dict[str, torch.Tensor],
        transport: str,
        *,
        verify: bool,
        name: str | None = None,
    ) -> None:
        self.name = name or self.title(transport, verify)
        self.stage = stage
        self._verify = verify
        self._version = 0
        self._digests = torch.zeros(stage.world_size - 1, dtype=torch.int64)
        meeting = Meeting(
            group=self.name,
            secret="measured",
            store=stage.store,
            directory=stage.directory,
            address="127.0.0.1",
            timeout_s=TIMEOUT_S,
        )
        workers = range(stage.world_size - 1)
        if stage.is_sender:
            largest = largest_messages(plan, SENDER)
            wires = connect_senders(meeting, SENDER, dict.fromkeys(largest, (transport,)), largest, stage.device)
            self._sender = ReplicaSender(plan=plan, rank=SENDER, wires=wires, verify=verify)
        else:
            worker = workers[stage.rank - 1]
            self._shadow = shadow
            self._receiver = WeightReceiver(
                plan=plan,
                rank=worker,
                received=self._shadow,
                meeting=meeting,
                transports=[(transport,)],
                device=stage.device,
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
        if not self.stage.is_sender:
            self._receiver.drop()
            # What another way has left must not pass for what this one brought.
            for tensor in self._shadow.values():
                tensor.view(-1)[:1].fill_(float(self._version))
            self._receiver.prepare(self._version, None)

    def once(self) -> None:
        self._digests.zero_()
        if self.stage.is_sender:
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
            self._digests[self.stage.rank - 1] = -_signed(status["digest"])

    def _send(self) -> Sent:
        return self._sender.send(self.stage.tensors, None, time.monotonic() + TIMEOUT_S)

    def check(self) -> None:
        dist.all_reduce(self._digests)
        assert not self._verify or not self._digests.any(), f"{self.name}: what arrived is not what was sent"

    def close(self) -> None:
        if self.stage.is_sender:
            self._sender.close()
        else:
            self._receiver.close()
            self._shadow = {}


def shadow_of(stage: Stage, plan: Plan) -> dict[str, torch.Tensor]:
    """What a worker receives into, by every transport in turn; nothing at the trainer."""
    if stage.is_sender:
        return {}
    needs = plan.engines[0].parameters[stage.rank - 1]
    return {p.name: torch.zeros(p.shape, dtype=getattr(torch, p.dtype), device=stage.device) for p in needs}


def ours(stage: Stage) -> list[tuple[str, bool]]:
    """The transports that can join the trainer with every worker, with and without the digest."""
    mine = here(stage.device)
    table = torch.zeros(stage.world_size, 2, dtype=torch.int64)
    table[stage.rank] = torch.tensor([mine.host, mine.device])
    dist.all_reduce(table)
    places = [Place(*map(int, row)) for row in table.tolist()]
    names = [
        name
        for name in possible(stage.device.type)
        if all(joins(name, places[SENDER], worker) for worker in places[1:])
    ]
    return [(name, verify) for name in names for verify in (False, True)]


def plan_of(stage: Stage) -> Plan:
    """The plan from one trainer rank to the workers, which share the model."""
    workers = stage.world_size - 1
    engine = Engine(
        parameters=tuple(stage.model.parameters(Slice(rank=rank, size=workers)) for rank in range(workers)),
        locations=tuple(Location(node=0, gpu=rank + 1) for rank in range(workers)),
    )
    sources = place(stage.model.tensors(), [(".*", replicated(1))])
    return reshard(
        sources, [engine], [Location(node=0, gpu=0)], round_bytes=stage.round_bytes or ROUND_BYTES[stage.device.type]
    )


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value

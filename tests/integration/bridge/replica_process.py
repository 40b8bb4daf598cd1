"""A replica without an engine: the bridge's own middleware, state machine, workers and receivers around a plain module.

``python -m tests.integration.bridge.replica_process`` answers each line of JSON, a command, with one line of JSON.
"""

from __future__ import annotations

import asyncio
import gc
import os
import queue
import socket
import threading
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import uvicorn
from torch import nn

from launcher.bridge.codec.checksum import digest
from launcher.bridge.engine.worker import EngineWorker
from launcher.bridge.protocol import Manifest, TensorEntry
from launcher.bridge.settings import Mode
from launcher.bridge.vllm.middleware import BridgeMiddleware
from launcher.bridge.weightmap import WeightMap, Writer
from launcher.bridge.weightmap.build import build_weight_map
from launcher.common.env import LAUNCHER_TOKEN
from tests.integration.bridge.faults import Fault, Passing
from tests.integration.bridge.link_process import serve


def written(rows: int, columns: int) -> torch.Tensor:
    """Zeros that the kernel has given memory for."""
    return torch.empty(rows, columns).fill_(0.0)


class Shard(nn.Module):
    """One worker's rows of every matrix, and a loader that takes whole ones."""

    def __init__(self, names: list[str], rows: int, columns: int, rank: int, size: int) -> None:
        super().__init__()
        self._first, self._rows = rank * rows // size, rows // size
        for name in names:
            self.register_parameter(name, nn.Parameter(written(self._rows, columns), requires_grad=False))

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """As an engine's model has it."""
        for name, weight in weights:
            self.get_parameter(name).data.copy_(weight.narrow(0, self._first, self._rows))


class PlainWorker(EngineWorker):
    """A worker of this replica."""

    def __init__(self, model: Shard, rank: int, end: ReplicaProcess) -> None:
        self.rank = rank
        self.device = torch.device("cpu")
        self._model = model
        self._end = end

    def learn(self, manifest: Manifest) -> WeightMap:
        return build_weight_map(self._model.load_weights, dict(self._model.named_parameters()), manifest)

    def make_writer(self, weight_map: WeightMap, mode: Mode) -> Writer:
        made = Writer(weight_map, dict(self._model.named_parameters()), load=self._model.load_weights, mode=mode)
        made.received = dict(made.received)
        self.extra_bytes = made.extra_bytes
        made.received = Passing(made.received, lambda: self._end.fault, "receiving")  # type: ignore[assignment]
        return made

    @property
    def plan(self) -> Any:
        """What was agreed on last."""
        assert self._receiver is not None
        return self._receiver._plan


class ReplicaProcess:
    """What this process holds."""

    def __init__(self) -> None:
        self.fault = Fault()
        self.workers: list[PlainWorker] = []
        self.models: list[Shard] = []
        self._runs = threading.Event()
        self._runs.set()
        self.output_processor = SimpleNamespace(request_states={})
        self.engine_core = self
        self.outputs_queue: queue.SimpleQueue[Any] = queue.SimpleQueue()

    async def collective_rpc(self, _method: str, args: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """As vLLM's, but in a thread."""
        op, request = args
        self.fault.here(op)
        answers = await asyncio.to_thread(lambda: [worker.bridge_call(op, request) for worker in self.workers])
        self.fault.here(f"{op} done")
        return answers

    async def is_paused(self) -> bool:
        """Whether it stands still."""
        return not self._runs.is_set()

    async def pause_scheduler_async(self, **_: Any) -> None:
        """Stands still."""
        self._runs.clear()

    async def resume_generation(self) -> None:
        """Goes on."""
        self._runs.set()

    async def reset_prefix_cache(self, **_: Any) -> None:
        """It has none."""

    def serve(self, command: dict[str, Any]) -> dict[str, Any]:
        """Begins to serve the bridge's routes."""
        os.environ[LAUNCHER_TOKEN] = command["token"]
        os.environ["LAUNCHER_NODE_RANK"] = str(command["node"])
        os.environ["LAUNCHER_ADDRESS"] = "127.0.0.1"
        for rank in range(command["workers"]):
            model = Shard(command["names"], command["rows"], command["columns"], rank, command["workers"])
            self.models.append(model)
            self.workers.append(PlainWorker(model, rank, self))
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", command["port"]))
        sock.listen(64)
        middleware = BridgeMiddleware(_nothing)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope["app"] = SimpleNamespace(state=SimpleNamespace(engine_client=self))
            await middleware(scope, receive, send)

        config = uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False)
        server = uvicorn.Server(config)
        threading.Thread(target=lambda: server.run(sockets=[sock]), daemon=True).start()
        return {"port": sock.getsockname()[1]}

    def set_fault(self, command: dict[str, Any]) -> dict[str, Any]:
        """From now on, this happens to the process."""
        self.fault = Fault(command["at"], command["number"], command.get("count", 0))
        return {}

    def values(self, _command: dict[str, Any]) -> dict[str, Any]:
        """All distinct values in the live weights, once it runs: while it stands still it answers nothing."""
        assert self._runs.wait(60.0)
        found: set[float] = set()
        for model in self.models:
            for parameter in model.parameters():
                found |= set(parameter.unique().tolist())
        return {"values": sorted(found)}

    def memory(self, _command: dict[str, Any]) -> dict[str, Any]:
        """Bytes now and at most since the last question, and the bound besides the shadow."""
        return memory(sum(getattr(worker, "extra_bytes", 0) for worker in self.workers))


def memory(extra_bytes: int) -> dict[str, Any]:
    """What the kernel says about this process; the maximum begins anew."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, most = (int(status[key].split()[0]) << 10 for key in ("VmRSS", "VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return {"now": now, "most": most, "extra_bytes": extra_bytes}


def warm() -> None:
    """Has everything imported that a replica imports when it is first needed."""
    import uvicorn.protocols.http.auto  # noqa: F401
    import uvicorn.protocols.websockets.auto  # noqa: F401

    digest(torch.ones(64, 64))
    model = Shard(["one"], 4, 4, 0, 1)
    build_weight_map(
        model.load_weights,
        dict(model.named_parameters()),
        (TensorEntry(name="one", shape=(4, 4), dtype="float32", alias_of=None),),
    )


async def _nothing(_scope: Any, _receive: Any, _send: Any) -> None:
    """The application behind the bridge: there is none."""


def main() -> None:
    """Serves commands until standard input ends."""
    serve(ReplicaProcess())


if __name__ == "__main__":
    main()

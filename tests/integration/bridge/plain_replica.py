"""A replica without an engine, in threads: the bridge's middleware, state machine and worker around a plain module."""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import uvicorn

from launcher.bridge.engine.worker import EngineWorker
from launcher.bridge.protocol import Manifest
from launcher.bridge.settings import Mode
from launcher.bridge.vllm.middleware import BridgeMiddleware
from launcher.bridge.weightmap import WeightMap, Writer
from launcher.bridge.weightmap.build import build_weight_map
from launcher.common.env import LAUNCHER_TOKEN

State = dict[str, torch.Tensor]


class PlainReplica(EngineWorker):
    """Serves parameters that are as wide as the trainer's, two of them fused; plays the engine as well as its worker.

    Args:
        live: its parameters.
        fused: by trainer name: a parameter, and the row from which on it holds the trainer's tensor.
    """

    def __init__(self, live: State, fused: dict[str, tuple[str, int]]) -> None:
        self.rank, self.device = 0, torch.device("cpu")
        self.live = live
        self._fused = fused
        self._paused = False
        self.output_processor = SimpleNamespace(request_states={})
        self.engine_core = self
        self.outputs_queue: queue.SimpleQueue[Any] = queue.SimpleQueue()

    @property
    def received(self) -> State:
        """Where a version arrives."""
        assert self._writer is not None
        return self._writer.received

    def _load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, weight in weights:
            parameter, row = self._fused.get(name, (name, 0))
            if parameter in self.live:
                self.live[parameter][row : row + weight.shape[0]].copy_(weight)

    def learn(self, manifest: Manifest) -> WeightMap:
        return build_weight_map(self._load, self.live, manifest)

    def make_writer(self, weight_map: WeightMap, mode: Mode) -> Writer:
        return Writer(weight_map, self.live, load=self._load, mode=mode)

    async def collective_rpc(self, _method: str, args: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """As vLLM's."""
        return [await asyncio.to_thread(self.bridge_call, *args)]

    async def is_paused(self) -> bool:
        """Whether it stands still."""
        return self._paused

    async def pause_scheduler_async(self, **_: Any) -> None:
        """Stands still."""
        self._paused = True

    async def resume_generation(self) -> None:
        """Goes on."""
        self._paused = False

    async def reset_prefix_cache(self, **_: Any) -> None:
        """It has none."""


@contextmanager
def serving(replica: PlainReplica, token: str) -> Iterator[str]:
    """Serves the bridge's routes; the URL."""
    with patch.dict(os.environ, {LAUNCHER_TOKEN: token}):
        middleware = BridgeMiddleware(_nothing)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["app"] = SimpleNamespace(state=SimpleNamespace(engine_client=replica))
        await middleware(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        thread = threading.Thread(target=lambda: server.run(sockets=[sock]))
        thread.start()
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


async def _nothing(_scope: Any, _receive: Any, _send: Any) -> None:
    """The application behind the bridge: there is none."""

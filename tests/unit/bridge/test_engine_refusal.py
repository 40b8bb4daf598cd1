"""An engine that an update would not reach whole answers nobody, and caches of old weights are dropped, or it stops."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware

from launcher.bridge.engine.state_machine import Refused
from launcher.bridge.vllm.compat import VllmEngine
from launcher.bridge.vllm.middleware import BridgeMiddleware
from launcher.common.keys import bridge_key


def application(ranks: int) -> Starlette:
    """A server as vLLM builds it, with this many data-parallel engines behind it."""
    app = Starlette(middleware=[Middleware(BridgeMiddleware)])
    parallel = SimpleNamespace(data_parallel_size=ranks)
    app.state.engine_client = SimpleNamespace(vllm_config=SimpleNamespace(parallel_config=parallel))
    return app


def started(ranks: int) -> bool:
    async def go() -> bool:
        server = uvicorn.Server(uvicorn.Config(application(ranks), port=0, log_level="critical"))
        serving = asyncio.create_task(server.serve())
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        server.should_exit = True
        await serving
        return bool(server.started)

    return asyncio.run(go())


def test_a_server_of_several_data_parallel_engines_does_not_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LAUNCHER_TOKEN", "t" * 64)
    assert started(1)
    with pytest.raises(SystemExit, match="3"):
        started(2)
    assert "2 data-parallel ones behind one port" in caplog.text


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_nothing_is_bound_where_the_server_was_started_all_the_same(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv("LAUNCHER_TOKEN", "t" * 64)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    key = f"{scheme} {bridge_key('t' * 64)}".encode()
    scope = {"type": "http", "method": "GET", "path": "/bridge/info", "headers": [(b"authorization", key)]}
    asyncio.run(application(2)(scope, receive, send))
    assert sent[0]["status"] == 409
    assert b"an update would reach one" in sent[1]["body"]


class Client:
    """Of vLLM's engine client what drops caches."""

    def __init__(self, *, dropped: bool) -> None:
        self.dropped = dropped
        self.calls: list[tuple[str, bool]] = []

    async def reset_prefix_cache(self, reset_running_requests: bool, reset_connector: bool) -> bool:
        self.calls.append(("keys and values", reset_running_requests and reset_connector))
        return self.dropped

    async def reset_encoder_cache(self) -> None:
        self.calls.append(("encoder", True))


def test_keys_and_values_everywhere_and_what_encoders_made_are_dropped() -> None:
    client = Client(dropped=True)
    asyncio.run(VllmEngine(client).reset_prefix_cache())
    assert client.calls == [("keys and values", True), ("encoder", True)]


def test_an_engine_that_keeps_keys_and_values_of_old_weights_does_not_go_on() -> None:
    with pytest.raises(Refused, match="has not dropped all keys and values"):
        asyncio.run(VllmEngine(Client(dropped=False)).reset_prefix_cache())

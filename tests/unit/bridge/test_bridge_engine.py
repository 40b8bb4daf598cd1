"""An engine's side of updates when trainers are restarted, or it was itself; vLLM is a stand-in that does as told."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.bridge.engine.state_machine import Refused, UpdateStateMachine
from launcher.bridge.plan import Location
from launcher.bridge.protocol import (
    Abort,
    Bind,
    BridgeRequest,
    Commit,
    Connect,
    Disconnect,
    Prepare,
    TrainerSpec,
    Vote,
    WorkerConnected,
    WorkerSpec,
    WorkerStatus,
)
from launcher.bridge.transport.choose import Place
from launcher.bridge.vllm.compat import VllmEngine
from launcher.common.codec import to_builtins


class Vllm:
    """The part of vLLM's engine client that the bridge uses, with one worker."""

    def __init__(self) -> None:
        self.receiving = "received"
        self.output_processor = SimpleNamespace(request_states={})
        self.engine_core = self
        self.outputs_queue: asyncio.Queue[Any] = asyncio.Queue()
        self.calls: list[str] = []

    async def collective_rpc(self, name: str, args: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
        self.calls.append(args[0])
        replies = {
            "bind": WorkerSpec(weight_map={}, location=Location(node=0, gpu=0), place=Place(1, 0)),
            "connect": WorkerConnected(plan="digest"),
            "status": WorkerStatus(state=self.receiving, digest=1),
        }
        return [to_builtins(replies.get(args[0], {}))]

    async def is_paused(self) -> bool:
        return False

    async def pause_scheduler_async(self, mode: str, clear_cache: bool) -> None:
        assert (mode, clear_cache) == ("keep", False)
        self.calls.append("pause")

    async def resume_generation(self) -> None:
        self.calls.append("resume")

    async def reset_prefix_cache(self, **_: Any) -> None:
        self.calls.append("reset")


NOTHING = TrainerSpec(manifest=(), placements=(), placement_of={}, locations=(), round_bytes=1)


def requests(version: int = 1, **about: Any) -> dict[str, BridgeRequest[Any]]:
    """One of each operation of an update, by name."""
    link = {"transport": "auto", "group": "g", "secret": "s", "store": "s:1", "timeout_s": 5.0}
    made: list[BridgeRequest[Any]] = [
        Bind(trainer=NOTHING, **about),
        Connect(workers=(), plan="digest", places=(), mode="shadow", verify=True, **link, **about),  # type: ignore[arg-type]
        Prepare(version=version, **about),
        Vote(version=version, timeout_s=5.0, **about),
        Commit(version=version, **about),
        Abort(**about),
        Disconnect(**about),
    ]
    return {request.operation: request for request in made}


async def publish(engine: UpdateStateMachine, vllm: Vllm, version: int, restart_count: int) -> None:
    for name in ("prepare", "vote", "commit"):
        await engine.handle(VllmEngine(vllm), requests(version, restart_count=restart_count)[name])


def test_restarted_trainers_go_on_with_a_lower_version_and_those_before_them_are_refused() -> None:
    async def go() -> None:
        engine, vllm = UpdateStateMachine(), Vllm()
        await publish(engine, vllm, 7, 0)
        with pytest.raises(Refused, match="version 7 is not newer than 7"):
            await publish(engine, vllm, 7, 0)
        await engine.handle(VllmEngine(vllm), Bind(trainer=NOTHING, restart_count=1))
        assert engine.version == 7
        for route in ("bind", "connect", "prepare", "commit", "abort", "disconnect"):
            with pytest.raises(Refused, match="restarted 1 times, not 0"):
                await engine.handle(VllmEngine(vllm), requests(8, restart_count=0)[route])
        await publish(engine, vllm, 4, 1)
        assert engine.version == 4
        with pytest.raises(Refused, match="version 3 is not newer than 4"):
            await publish(engine, vllm, 3, 1)

    asyncio.run(go())


def test_what_was_prepared_for_trainers_that_are_gone_is_forgotten() -> None:
    async def go() -> None:
        engine, vllm = UpdateStateMachine(), Vllm()
        await engine.handle(VllmEngine(vllm), Prepare(version=5, restart_count=0))
        assert engine.state == "preparing"
        await engine.handle(VllmEngine(vllm), Bind(trainer=NOTHING, restart_count=1))
        assert engine.state == "serving"
        with pytest.raises(Refused, match="version 5 is not being prepared"):
            await engine.handle(VllmEngine(vllm), Commit(version=5, restart_count=1))

    asyncio.run(go())


def test_a_vote_on_what_never_comes_gives_way_to_restarted_trainers() -> None:
    async def go() -> None:
        engine, vllm = UpdateStateMachine(), Vllm()
        vllm.receiving = "receiving"
        await engine.handle(VllmEngine(vllm), Prepare(version=5, restart_count=0))
        vote = asyncio.create_task(engine.handle(VllmEngine(vllm), Vote(version=5, restart_count=0, timeout_s=3600)))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(30):
            await engine.handle(VllmEngine(vllm), Bind(trainer=NOTHING, restart_count=1))
            with pytest.raises(Refused, match="the trainers have been restarted"):
                await vote

    asyncio.run(go())


def test_an_engine_with_weights_that_are_out_of_date_waits_for_the_first_commit() -> None:
    async def go() -> None:
        engine, vllm = UpdateStateMachine(awaits_weights=True), Vllm()
        await engine.handle(VllmEngine(vllm), Prepare(version=5, restart_count=2))
        assert engine.awaits_weights
        await publish(engine, vllm, 5, 2)
        assert not engine.awaits_weights

    asyncio.run(go())

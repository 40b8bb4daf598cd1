"""An engine's side of updates when trainers are restarted, or it was itself; vLLM is a stand-in that does as told."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.bridge.vllm.engine import BridgeEngine, Refused


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
        return [{"state": self.receiving, "digest": 1}]

    async def is_paused(self) -> bool:
        return False

    async def pause_scheduler_async(self, mode: str, clear_cache: bool) -> None:
        assert (mode, clear_cache) == ("keep", False)
        self.calls.append("pause")

    async def resume_generation(self) -> None:
        self.calls.append("resume")

    async def reset_prefix_cache(self, **_: Any) -> None:
        self.calls.append("reset")


async def publish(engine: BridgeEngine, vllm: Vllm, version: int, incarnation: int) -> None:
    body = {"version": version, "incarnation": incarnation, "timeout_s": 5}
    for route in ("prepare", "vote", "commit"):
        await engine.handle(vllm, "POST", route, body)


def test_restarted_trainers_go_on_with_a_lower_version_and_those_before_them_are_refused() -> None:
    async def go() -> None:
        engine, vllm = BridgeEngine(), Vllm()
        await publish(engine, vllm, 7, 0)
        with pytest.raises(Refused, match="version 7 is not newer than 7"):
            await publish(engine, vllm, 7, 0)
        await engine.handle(vllm, "POST", "bind", {"incarnation": 1})
        assert engine.version == 7
        for route in ("bind", "connect", "prepare", "commit", "abort", "disconnect"):
            with pytest.raises(Refused, match="restarted 1 times, not 0"):
                await engine.handle(vllm, "POST", route, {"version": 8, "incarnation": 0})
        await publish(engine, vllm, 4, 1)
        assert engine.version == 4
        with pytest.raises(Refused, match="version 3 is not newer than 4"):
            await publish(engine, vllm, 3, 1)

    asyncio.run(go())


def test_what_was_prepared_for_trainers_that_are_gone_is_forgotten() -> None:
    async def go() -> None:
        engine, vllm = BridgeEngine(), Vllm()
        await engine.handle(vllm, "POST", "prepare", {"version": 5, "incarnation": 0})
        assert engine.state == "preparing"
        await engine.handle(vllm, "POST", "bind", {"incarnation": 1})
        assert engine.state == "serving"
        with pytest.raises(Refused, match="version 5 is not being prepared"):
            await engine.handle(vllm, "POST", "commit", {"version": 5, "incarnation": 1})

    asyncio.run(go())


def test_a_vote_on_what_never_comes_gives_way_to_restarted_trainers() -> None:
    async def go() -> None:
        engine, vllm = BridgeEngine(), Vllm()
        vllm.receiving = "receiving"
        await engine.handle(vllm, "POST", "prepare", {"version": 5, "incarnation": 0})
        vote = asyncio.create_task(
            engine.handle(vllm, "POST", "vote", {"version": 5, "incarnation": 0, "timeout_s": 3600})
        )
        await asyncio.sleep(0.05)
        async with asyncio.timeout(30):
            await engine.handle(vllm, "POST", "bind", {"incarnation": 1})
            with pytest.raises(Refused, match="the trainers have been restarted"):
                await vote

    asyncio.run(go())


def test_an_engine_with_weights_that_are_out_of_date_waits_for_the_first_commit() -> None:
    async def go() -> None:
        engine, vllm = BridgeEngine(awaits_weights=True), Vllm()
        await engine.handle(vllm, "POST", "prepare", {"version": 5, "incarnation": 2})
        assert engine.awaits_weights
        await publish(engine, vllm, 5, 2)
        assert not engine.awaits_weights

    asyncio.run(go())

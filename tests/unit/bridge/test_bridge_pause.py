"""A commit counts tokens only when all that a paused vLLM has produced is counted with its requests."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.bridge.vllm.compat import VllmEngine

VLLM_SLICE = 128


def engine_of(requests: int) -> Any:
    """The part of vLLM's engine client that is looked at."""
    return SimpleNamespace(
        engine_core=SimpleNamespace(outputs_queue=asyncio.Queue()),
        output_processor=SimpleNamespace(request_states=dict.fromkeys(range(requests), 0)),
    )


async def count(engine: Any) -> None:
    """As vLLM's front end does: a step's outputs in slices, other tasks in between."""
    states = engine.output_processor.request_states
    while True:
        outputs = await engine.engine_core.outputs_queue.get()
        for start in range(0, len(outputs), VLLM_SLICE):
            for request in outputs[start : start + VLLM_SLICE]:
                states[request] += 1
            if start + VLLM_SLICE < len(outputs):
                await asyncio.sleep(0)


@pytest.mark.parametrize("requests", [1, 128, 1000])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("turns", [0, 1, 5])
def test_all_steps_are_counted_whenever_one_asks(requests: int, steps: int, turns: int) -> None:
    async def go() -> None:
        engine = engine_of(requests)
        counting = asyncio.create_task(count(engine))
        await asyncio.sleep(0)
        for _ in range(steps):
            engine.engine_core.outputs_queue.put_nowait(list(range(requests)))
        for _ in range(turns):
            await asyncio.sleep(0)
        assert await VllmEngine(engine).drain_outputs(timeout_s=60)
        assert set(engine.output_processor.request_states.values()) == {steps}
        counting.cancel()

    asyncio.run(go())


def test_a_front_end_that_takes_nothing_in_is_not_waited_for_for_ever() -> None:
    async def go() -> None:
        engine = engine_of(1)
        engine.engine_core.outputs_queue.put_nowait([0])
        assert not await VllmEngine(engine).drain_outputs(timeout_s=0.05)

    asyncio.run(go())

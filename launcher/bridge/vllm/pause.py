"""vLLM stopped at a step boundary, without the 20 ms for which its own ``pause_generation`` sleeps afterwards.

It sleeps so that what the last steps produced has reached its requests before the caller goes on. Here weights are
written meanwhile, and :func:`settled` waits for the outputs themselves, before anybody counts them.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

SLICE = 32
"""vLLM's front end counts a step's outputs in slices of 128 (``VLLM_V1_OUTPUT_PROC_CHUNK_SIZE``), and lets other tasks
run between them; to expect smaller ones only means to wait for more turns than there are."""


async def pause(engine: Any) -> None:
    """Returns when no step is in flight and none will begin; running requests are kept."""
    await engine.engine_core.pause_scheduler_async(mode="keep", clear_cache=False)


async def settled(engine: Any, timeout_s: float) -> bool:
    """Waits until all that a paused engine has produced is counted with its requests; False if it is not in time.

    The engine's last outputs came before its word that it is paused, over the same socket. So they are in the front
    end's queue, or have been taken off it and are being counted.
    """
    deadline = time.monotonic() + timeout_s
    outputs = engine.engine_core.outputs_queue
    while not outputs.empty():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0)
    for _ in range(len(engine.output_processor.request_states) // SLICE + 2):
        await asyncio.sleep(0)
    return True

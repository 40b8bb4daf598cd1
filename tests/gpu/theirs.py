"""vLLM's own weight transfer, to compare with: NCCL, packed broadcast, the engine paused from beginning to end.

Its routes exist only in vLLM's development mode, which a test may open on this machine alone; the run's key guards them
like all others.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import torch

from launcher.ports import hold_free_port, port_of

ADDRESS = "127.0.0.1"
TIMEOUT_S = 60.0


class Theirs:
    """The trainer's end, for an engine of one worker that was started with ``--weight-transfer-config``."""

    def __init__(self, url: str, key: str, model: torch.nn.Module) -> None:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

        self._engine = NCCLWeightTransferEngine
        self._model = model
        headers = {"Authorization": f"Bearer {key}"}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False)
        self._pool = ThreadPoolExecutor(max_workers=1)
        with hold_free_port(ADDRESS) as held:
            port = port_of(held)
        meeting = {"master_address": ADDRESS, "master_port": port, "world_size": 2}
        asked = self._pool.submit(
            self._ask, "init_weight_transfer_engine", {"init_info": {**meeting, "rank_offset": 1}}
        )
        self._group = NCCLWeightTransferEngine.trainer_init(meeting)
        asked.result()

    def publish(self) -> tuple[float, float]:
        """Sends the model's weights; seconds in all, and those in which the engine did not decode."""
        named = list(self._model.named_parameters())
        described = {
            "names": [name for name, _ in named],
            "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in named],
            "shapes": [list(tensor.shape) for _, tensor in named],
            "packed": True,
        }
        torch.cuda.synchronize()
        begin = time.monotonic()
        self._ask("pause?mode=keep")
        paused = time.monotonic()
        self._ask("start_weight_update")
        asked = self._pool.submit(self._ask, "update_weights", {"update_info": described})
        self._engine.trainer_send_weights(iter(named), {"group": self._group, "packed": True})
        asked.result()
        self._ask("finish_weight_update")
        self._ask("resume")
        end = time.monotonic()
        return end - begin, end - paused

    def close(self) -> None:
        """Ends its connections."""
        self._pool.shutdown()
        self._client.close()

    def _ask(self, route: str, body: dict[str, Any] | None = None) -> None:
        self._client.post(f"/{route}", json=body).raise_for_status()

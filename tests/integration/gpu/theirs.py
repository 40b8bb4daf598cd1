"""vLLM's own weight transfers, to compare with: packed, the engine paused from beginning to end.

Their routes exist only in vLLM's development mode, which a test may open on this machine alone; the run's key guards
them like all others.
"""

from __future__ import annotations

import base64
import pickle
import time
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import httpx
import torch

from launcher.common.ports import hold_free_port, port_of

ADDRESS = "127.0.0.1"
TIMEOUT_S = 60.0
Named = list[tuple[str, torch.nn.Parameter]]


class Theirs(ABC):
    """The trainer's end, for an engine of one worker that was started with ``--weight-transfer-config``."""

    def __init__(self, url: str, key: str, model: torch.nn.Module) -> None:
        self._model = model
        headers = {"Authorization": f"Bearer {key}"}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False)

    def publish(self) -> tuple[float, float]:
        """Sends the model's weights; seconds in all, and those in which the engine did not decode."""
        torch.cuda.synchronize()
        begin = time.monotonic()
        self._ask("pause?mode=keep")
        paused = time.monotonic()
        self._ask("start_weight_update")
        self._send(list(self._model.named_parameters()))
        self._ask("finish_weight_update")
        self._ask("resume")
        end = time.monotonic()
        return end - begin, end - paused

    def close(self) -> None:
        """Ends its connections."""
        self._client.close()

    @abstractmethod
    def _send(self, named: Named) -> None:
        """Everything, until the engine has it."""

    def _ask(self, route: str, body: dict[str, Any] | None = None) -> None:
        self._client.post(f"/{route}", json=body).raise_for_status()


class TheirNccl(Theirs):
    """To an engine on another GPU: packed broadcasts."""

    def __init__(self, url: str, key: str, model: torch.nn.Module) -> None:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

        super().__init__(url, key, model)
        self._engine = NCCLWeightTransferEngine
        self._pool = ThreadPoolExecutor(max_workers=1)
        with hold_free_port(ADDRESS) as held:
            port = port_of(held)
        meeting = {"master_address": ADDRESS, "master_port": port, "world_size": 2}
        asked = self._pool.submit(
            self._ask, "init_weight_transfer_engine", {"init_info": {**meeting, "rank_offset": 1}}
        )
        self._group = NCCLWeightTransferEngine.trainer_init(meeting)
        asked.result()

    def close(self) -> None:
        self._pool.shutdown()
        super().close()

    def _send(self, named: Named) -> None:
        described = {
            "names": [name for name, _ in named],
            "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in named],
            "shapes": [list(tensor.shape) for _, tensor in named],
            "packed": True,
        }
        asked = self._pool.submit(self._ask, "update_weights", {"update_info": described})
        self._engine.trainer_send_weights(iter(named), {"group": self._group, "packed": True})
        asked.result()


class TheirIpc(Theirs):
    """To an engine on the same GPU: packed buffers that it maps. Its handles are pickles, which it has to be told."""

    def __init__(self, url: str, key: str, model: torch.nn.Module) -> None:
        from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine

        super().__init__(url, key, model)
        self._engine = IPCWeightTransferEngine
        self._ask("init_weight_transfer_engine", {"init_info": {}})

    def _send(self, named: Named) -> None:
        self._engine.trainer_send_weights(iter(named), {"send_mode": self._update, "packed": True})

    def _update(self, info: Any) -> None:
        described = asdict(info)
        handles = base64.b64encode(pickle.dumps(described.pop("ipc_handles"))).decode()
        self._ask("update_weights", {"update_info": {**described, "ipc_handles_pickled": handles}})

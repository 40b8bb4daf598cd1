"""The receiver inside a vLLM worker, added with ``--worker-extension-cls`` and called through ``collective_rpc``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from launcher.bridge.engine.worker import EngineWorker
from launcher.bridge.protocol import FAILED
from launcher.bridge.vllm.adapter import AdapterWorker
from launcher.bridge.vllm.options import remarks, weights_refusal
from launcher.bridge.vllm.plain_linear import use_live_weights
from launcher.bridge.vllm.weightmap import build_worker_map, check_filled, writer
from launcher.common.errors import BridgeError

if TYPE_CHECKING:
    from launcher.bridge.protocol import Manifest
    from launcher.bridge.settings import Mode
    from launcher.bridge.weightmap import WeightMap, Writer

logger = logging.getLogger(__name__)


class BridgeWorker:
    """Mixed into vLLM's worker class; adds :meth:`bridge_call`."""

    rank: int
    device: torch.device
    _bridge_workers: dict[str | None, EngineWorker] | None = None

    def bridge_call(self, operation: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """One operation on the model's weights, or on the adapter that it names."""
        if self._bridge_workers is None:
            self._bridge_workers = {None: ModelWorker(self)}
        name = fields.get("adapter")
        if name not in self._bridge_workers:
            try:
                self._bridge_workers[name] = AdapterWorker(self)
            except BridgeError as error:
                return {FAILED: f"worker {self.rank}: {error}"}
        return self._bridge_workers[name].bridge_call(operation, fields)


class ModelWorker(EngineWorker):
    """The model's weights in one worker.

    Args:
        worker: vLLM's.
    """

    def __init__(self, worker: Any) -> None:
        self.rank, self.device = worker.rank, worker.device
        self._worker = worker

    def learn(self, manifest: Manifest) -> WeightMap:
        """From the model's own loader."""
        config = self._worker.vllm_config
        if reason := weights_refusal(config):
            raise BridgeError(reason)
        for remark in remarks(config):
            logger.warning("bridge: %s", remark)
        model = self._worker.get_model()
        if self.device.type == "cpu":
            use_live_weights(model)
        weight_map = build_worker_map(model, config.model_config, manifest)
        if config.load_config.load_format == "dummy":
            check_filled(model, weight_map)
        return weight_map

    def make_writer(self, weight_map: WeightMap, mode: Mode) -> Writer:
        """Into the model's parameters."""
        return writer(self._worker.get_model(), self._worker.vllm_config.model_config, weight_map, mode)


def _permit_amx() -> None:
    """vLLM on CPU uses AMX tiles where the processor has them, but never asks the kernel for them: SIGILL otherwise."""
    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()


_permit_amx()

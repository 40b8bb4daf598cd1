"""The receiver inside a vLLM worker, added with ``--worker-extension-cls`` and called through ``collective_rpc``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from launcher.bridge.engine.worker import Worker
from launcher.bridge.vllm.adapter import AdapterWorker
from launcher.bridge.vllm.plain_linear import use_live_weights
from launcher.bridge.vllm.weightmap import bind_worker, writer
from launcher.common.errors import BridgeError

if TYPE_CHECKING:
    from torch import nn

    from launcher.bridge.manifest import Manifest
    from launcher.bridge.settings import Mode
    from launcher.bridge.weightmap import Binding, Writer


class BridgeWorker(Worker):
    """Mixed into vLLM's worker class."""

    vllm_config: Any
    _bridge_adapters: dict[str, AdapterWorker] | None = None

    if TYPE_CHECKING:

        def get_model(self) -> nn.Module: ...

    def bridge_call(self, op: str, request: dict[str, Any]) -> dict[str, Any]:
        """One request about the weights, or about the adapter that it names."""
        name = request.get("adapter")
        if name is None:
            return super().bridge_call(op, request)
        self._bridge_adapters = self._bridge_adapters or {}
        if name not in self._bridge_adapters:
            try:
                self._bridge_adapters[name] = AdapterWorker(self)
            except BridgeError as error:
                return {"error": f"worker {self.rank}: {error}"}
        return self._bridge_adapters[name].bridge_call(op, request)

    def _bridge_learn(self, manifest: Manifest) -> Binding:
        """From the model's own loader."""
        model = self.get_model()
        if self.device.type == "cpu":
            use_live_weights(model)
        return bind_worker(model, self.vllm_config.model_config, manifest)

    def _bridge_make_writer(self, binding: Binding, mode: Mode) -> Writer:
        return writer(self.get_model(), self.vllm_config.model_config, binding, mode)


def _permit_amx() -> None:
    """vLLM on CPU uses AMX tiles where the processor has them, but never asks the kernel for them: SIGILL otherwise."""
    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()


_permit_amx()

"""The receiver inside a vLLM worker, added with ``--worker-extension-cls`` and called through ``collective_rpc``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from launcher.bridge.binding.vllm import bind_worker, writer
from launcher.bridge.vllm.plain_linear import use_live_weights
from launcher.bridge.worker import Worker

if TYPE_CHECKING:
    from torch import nn

    from launcher.bridge.binding import Binding, Writer
    from launcher.bridge.manifest import Manifest
    from launcher.bridge.mode import Mode


class BridgeWorker(Worker):
    """Mixed into vLLM's worker class."""

    vllm_config: Any

    if TYPE_CHECKING:

        def get_model(self) -> nn.Module: ...

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

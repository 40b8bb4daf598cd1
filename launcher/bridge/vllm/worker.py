"""The receiver inside a vLLM worker, added with ``--worker-extension-cls`` and called through ``collective_rpc``."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import torch

from launcher.bridge.manifest import digest, from_json
from launcher.bridge.receiver import Receiver
from launcher.bridge.vllm.plain_linear import NAME, use_live_weights
from launcher.errors import BridgeError, TransferError

if TYPE_CHECKING:
    from torch import nn


class BridgeWorker:
    """Mixed into vLLM's worker class; ``bridge_call`` is its one public method.

    It runs in the worker's loop, so never during a forward pass, and must therefore be quick: only ``commit`` does work
    there. Its answer is JSON and holds ``error`` instead of raising, so that one worker's failure reaches the trainer
    as words and does not take the engine down.
    """

    rank: int
    device: torch.device
    _bridge_receiver: Receiver | None = None

    if TYPE_CHECKING:

        def get_model(self) -> nn.Module: ...

    def bridge_call(self, op: str, request: dict[str, Any]) -> dict[str, Any]:
        """One request to this worker; ``{"error": text}`` if it failed."""
        operations = {
            "connect": self._bridge_connect,
            "prepare": self._bridge_prepare,
            "status": self._bridge_status,
            "commit": self._bridge_commit,
            "load": self._bridge_load,
            "drop": self._bridge_drop,
            "disconnect": self._bridge_disconnect,
        }
        try:
            return operations[op](request)
        except (BridgeError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            return {"error": f"worker {self.rank}: {type(error).__name__}: {error}"}

    def _bridge_connect(self, request: dict[str, Any]) -> dict[str, Any]:
        self._bridge_disconnect(request)
        self._bridge_refuse_packed()
        manifest = from_json(request["manifest"])
        if digest(manifest) != request["digest"]:
            raise TransferError("the manifest's digest is not the one that the trainer computed")
        self._bridge_receiver = Receiver(
            manifest=manifest,
            backend=request["backend"],
            group=request["group"],
            store=request["store"],
            rank=1 + self.rank,
            world_size=int(request["world_size"]),
            device=self.device,
            address=os.environ.get("LAUNCHER_ADDRESS"),
            timeout_s=float(request["timeout_s"]),
        )
        return {"rank": self.rank, "digest": digest(manifest)}

    def _bridge_prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        self._bridge_joined().prepare(int(request["version"]), list(request["names"]))
        return {}

    def _bridge_status(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._bridge_joined().status()

    def _bridge_commit(self, request: dict[str, Any]) -> dict[str, Any]:
        tensors = self._bridge_joined().take(int(request["version"]))
        return self._bridge_write(tensors, whole=bool(request["whole"]))

    def _bridge_load(self, request: dict[str, Any]) -> dict[str, Any]:
        """The filesystem's way: a file that all workers can read."""
        from safetensors.torch import load_file

        self._bridge_refuse_packed()
        return self._bridge_write(list(load_file(request["path"]).items()), whole=bool(request["whole"]))

    def _bridge_drop(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._bridge_receiver is not None:
            self._bridge_receiver.drop()
        return {}

    def _bridge_disconnect(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._bridge_receiver is not None:
            self._bridge_receiver.close()
            self._bridge_receiver = None
        return {}

    def _bridge_write(self, tensors: list[tuple[str, torch.Tensor]], *, whole: bool) -> dict[str, Any]:
        """Into the live parameters, through the model's own loader: it knows its fused and its sharded ones."""
        begin = time.monotonic()
        model = self.get_model()
        with torch.no_grad():
            loaded = model.load_weights(iter(tensors))  # type: ignore[operator]
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if whole and loaded is not None:
            missed = sorted({name for name, _ in model.named_parameters()} - set(loaded))
            if missed:
                raise TransferError(f"{len(missed)} parameters of the engine were not in the update, first: {missed[0]}")
        return {"seconds": time.monotonic() - begin}

    def _bridge_refuse_packed(self) -> None:
        """Writing a parameter beside the packed copy that an engine computes with would be silently lost."""
        packed = use_live_weights(self.get_model()) if self.device.type == "cpu" else []
        if packed:
            raise TransferError(
                f"{len(packed)} parameters are packed and cannot be updated in place, first: {packed[0]}."
                f" HINT: start the engine with `--quantization {NAME}`."
            )

    def _bridge_joined(self) -> Receiver:
        if self._bridge_receiver is None:
            raise TransferError("this worker has not joined the bridge")
        return self._bridge_receiver


def _permit_amx() -> None:
    """vLLM on CPU uses AMX tiles where the processor has them, but never asks the kernel for them: SIGILL otherwise."""
    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()


_permit_amx()

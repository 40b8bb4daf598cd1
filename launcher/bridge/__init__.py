"""The path of the weights from a trainer into live engines; a library that needs nothing else of the launcher.

A trainer needs three calls, made by every rank::

    bridge = launcher.bridge.connect()        # without a run: connect(BridgeSettings(urls=..., token=...))
    bridge.publish(model, version=step)
    bridge.close()

The names of the earlier single-file bridge can be imported from here, too; :mod:`launcher.bridge.compat` documents
them. Importing this package imports no torch; the first use of a name does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launcher.bridge.compat import (
        BridgeConfig,
        VLLMWeightBridge,
        broadcast_single_param,
        broadcast_weights,
        cleanup,
        create_bridge_from_training_config,
        export_param_mappings,
        get_inference_urls,
        notify_update,
        send_heartbeat,
    )
    from launcher.bridge.groups import init_process_group
    from launcher.bridge.plan.tensor_map import TensorMap
    from launcher.bridge.settings import BridgeSettings
    from launcher.bridge.sources.megatron import MegatronPlace, megatron_source
    from launcher.bridge.sources.peft import peft_source
    from launcher.bridge.sources.torchtitan import torchtitan_source
    from launcher.bridge.sources.zero3 import zero3_source
    from launcher.bridge.trainer.adapter import Adapter
    from launcher.bridge.trainer.api import Bridge, connect
    from launcher.bridge.trainer.check import CheckReport
    from launcher.bridge.trainer.source import WeightSource, rotary_halves, rows
    from launcher.bridge.trainer.update import Update, UpdateReport
    from launcher.common.errors import BridgeError, TransferError

_MODULE = {
    "Adapter": "launcher.bridge.trainer.adapter",
    "Bridge": "launcher.bridge.trainer.api",
    "BridgeError": "launcher.common.errors",
    "BridgeSettings": "launcher.bridge.settings",
    "CheckReport": "launcher.bridge.trainer.check",
    "MegatronPlace": "launcher.bridge.sources.megatron",
    "TensorMap": "launcher.bridge.plan.tensor_map",
    "TransferError": "launcher.common.errors",
    "Update": "launcher.bridge.trainer.update",
    "UpdateReport": "launcher.bridge.trainer.update",
    "WeightSource": "launcher.bridge.trainer.source",
    "connect": "launcher.bridge.trainer.api",
    "init_process_group": "launcher.bridge.groups",
    "megatron_source": "launcher.bridge.sources.megatron",
    "peft_source": "launcher.bridge.sources.peft",
    "rotary_halves": "launcher.bridge.trainer.source",
    "rows": "launcher.bridge.trainer.source",
    "torchtitan_source": "launcher.bridge.sources.torchtitan",
    "zero3_source": "launcher.bridge.sources.zero3",
}
"""Where each name is defined; the others are in :mod:`launcher.bridge.compat`."""

__all__ = [
    "Adapter",
    "Bridge",
    "BridgeConfig",
    "BridgeError",
    "BridgeSettings",
    "CheckReport",
    "MegatronPlace",
    "TensorMap",
    "TransferError",
    "Update",
    "UpdateReport",
    "VLLMWeightBridge",
    "WeightSource",
    "broadcast_single_param",
    "broadcast_weights",
    "cleanup",
    "connect",
    "create_bridge_from_training_config",
    "export_param_mappings",
    "get_inference_urls",
    "init_process_group",
    "megatron_source",
    "notify_update",
    "peft_source",
    "rotary_halves",
    "rows",
    "send_heartbeat",
    "torchtitan_source",
    "zero3_source",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE.get(name, "launcher.bridge.compat")), name)


def __dir__() -> list[str]:
    return sorted(__all__)

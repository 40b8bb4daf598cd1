"""The path of the weights from a trainer into live engines.

A trainer needs three calls, made by every rank::

    bridge = launcher.bridge.connect()
    bridge.publish(model, version=step)
    bridge.close()

The names of the earlier single-file bridge are kept beside them, see :mod:`launcher.bridge.compat`. Importing this
package imports no torch; the first use of a name does.
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
        notify_update,
        send_heartbeat,
    )
    from launcher.bridge.compat_mappings import export_param_mappings
    from launcher.bridge.compat_urls import get_inference_urls
    from launcher.bridge.groups import init_process_group
    from launcher.bridge.settings import BridgeSettings
    from launcher.bridge.trainer.api import Bridge, connect
    from launcher.bridge.trainer.report import UpdateReport

_HOME = {
    "Bridge": "trainer.api",
    "BridgeSettings": "settings",
    "UpdateReport": "trainer.report",
    "connect": "trainer.api",
    "init_process_group": "groups",
    "export_param_mappings": "compat_mappings",
    "get_inference_urls": "compat_urls",
    "BridgeConfig": "compat",
    "VLLMWeightBridge": "compat",
    "broadcast_single_param": "compat",
    "broadcast_weights": "compat",
    "cleanup": "compat",
    "create_bridge_from_training_config": "compat",
    "notify_update": "compat",
    "send_heartbeat": "compat",
}

__all__ = [
    "Bridge",
    "BridgeConfig",
    "BridgeSettings",
    "UpdateReport",
    "VLLMWeightBridge",
    "broadcast_single_param",
    "broadcast_weights",
    "cleanup",
    "connect",
    "create_bridge_from_training_config",
    "export_param_mappings",
    "get_inference_urls",
    "init_process_group",
    "notify_update",
    "send_heartbeat",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

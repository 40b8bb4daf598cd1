"""The earlier single-file bridge's names, as thin wrappers over :class:`launcher.bridge.trainer.api.Bridge`.

What was a broadcast of an index, a heartbeat of -1 and a shutdown of -2 inside the data plane is a call with an answer
here. Each name does what it says or raises; none reports success without weights having moved.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from launcher.bridge.settings import BridgeSettings
from launcher.bridge.trainer.api import Bridge, connect
from launcher.bridge.trainer.report import UpdateReport
from launcher.common.errors import BridgeError, TransferError
from launcher.common.keys import token_from_environment


@dataclass(kw_only=True)
class BridgeConfig:
    """How a trainer rank reaches the engines. Defaults are the earlier bridge's; in a run the agent's environment
    wins.
    """

    trainer_rank: int = 0
    world_size: int = 1
    init_method: str = "env://"
    """``env://``: the addresses come from the environment of the run. Otherwise ``vllm_api_url`` is used."""

    num_inference_nodes: int = 0
    """0: trainer and engines share the node. More: the last N nodes of the job run engines."""

    model_name: str = ""
    device: str = "cuda"
    timeout_seconds: float = 300.0
    """Deadline of joining and of each step of an update."""

    log_dir: str | None = field(default_factory=lambda: os.environ.get("LOGDIR"))
    vllm_api_url: str = "http://localhost:9001"
    num_gpus_per_node: int = 8

    @property
    def is_local_mode(self) -> bool:
        """Trainer and engines share the node."""
        return self.num_inference_nodes == 0

    @property
    def uses_nccl(self) -> bool:
        """Weights travel through NCCL: on GPUs. On a CPU they travel through gloo."""
        return self.device.startswith("cuda")

    @classmethod
    def from_training_config(cls, config: Any) -> BridgeConfig:
        """Takes every field that ``config`` has, as an attribute or a key, under the same name; the rest keep their
        defaults.
        """
        values = config if isinstance(config, dict) else vars(config)
        known = cls.__dataclass_fields__
        return cls(**{name: value for name, value in values.items() if name in known and value is not None})


class VLLMWeightBridge:
    """A bridge with the earlier interface. Every trainer rank makes the same calls."""

    def __init__(self, config: BridgeConfig) -> None:
        self.config = config
        self._bridge: Bridge | None = None
        self._version = 0

    @property
    def update_count(self) -> int:
        """Updates that every engine has committed."""
        return self._version

    def initialize(self) -> None:
        """Finds the engines. A second call does nothing.

        Raises:
            TransferError: an engine does not answer.
        """
        if self._bridge is None:
            bridge = connect(self._settings(), ready_timeout_s=self.config.timeout_seconds)
            versions = [info["version"] for info in bridge.info()]
            self._version = max((version for version in versions if version is not None), default=0)
            self._bridge = bridge

    def broadcast_weights(self, model: nn.Module) -> UpdateReport:
        """Sends all weights; after it every engine serves them.

        Raises:
            TransferError: an engine did not take them.
        """
        return self._publish(model, None)

    def broadcast_single_param(self, model: nn.Module, name: str) -> UpdateReport:
        """Sends one parameter, as a version of its own.

        Raises:
            ValueError: the module has no such parameter.
            TransferError: an engine did not take it.
        """
        return self._publish(model, [name])

    def notify_update(self) -> list[int]:
        """Asks every engine which version it serves; the versions, by replica.

        Raises:
            TransferError: one does not serve the last version that was sent.
        """
        versions = [info["version"] for info in self._joined().info()]
        if any(version != self._version for version in versions) and self._version > 0:
            raise TransferError(f"Version {self._version} was sent, but the engines serve {versions}.")
        return versions

    def send_heartbeat(self) -> None:
        """Asks every engine whether it is there.

        Raises:
            TransferError: one does not answer, or is quarantined.
        """
        for replica, info in enumerate(self._joined().info()):
            if info["state"] == "quarantined":
                raise TransferError(f"Replica {replica} is quarantined: an update failed while it was written.")

    def cleanup(self) -> None:
        """Leaves the engines, which go on serving what they have. Safe to call twice."""
        if self._bridge is not None:
            self._bridge.close()
            self._bridge = None

    def _publish(self, model: nn.Module, names: list[str] | None) -> UpdateReport:
        report = self._joined().publish(model, self._version + 1, names=names)
        self._version = report.version
        return report

    def _joined(self) -> Bridge:
        if self._bridge is None:
            raise BridgeError("The bridge is not initialised. HINT: call `initialize()` first.")
        return self._bridge

    def _settings(self) -> BridgeSettings | None:
        if self.config.init_method == "env://" and "LAUNCHER_RUN_DIR" in os.environ:
            return None
        return BridgeSettings(
            urls=(self.config.vllm_api_url,),
            token=token_from_environment(),
            timeout_s=self.config.timeout_seconds,
        )


def create_bridge_from_training_config(config: Any) -> VLLMWeightBridge:
    """An initialised bridge; ``config`` as for :meth:`BridgeConfig.from_training_config`."""
    bridge = VLLMWeightBridge(BridgeConfig.from_training_config(config))
    bridge.initialize()
    return bridge


def broadcast_weights(bridge: VLLMWeightBridge, model: nn.Module) -> UpdateReport:
    """:meth:`VLLMWeightBridge.broadcast_weights` as a function."""
    return bridge.broadcast_weights(model)


def broadcast_single_param(bridge: VLLMWeightBridge, model: nn.Module, name: str) -> UpdateReport:
    """:meth:`VLLMWeightBridge.broadcast_single_param` as a function."""
    return bridge.broadcast_single_param(model, name)


def notify_update(bridge: VLLMWeightBridge) -> list[int]:
    """:meth:`VLLMWeightBridge.notify_update` as a function."""
    return bridge.notify_update()


def send_heartbeat(bridge: VLLMWeightBridge) -> None:
    """:meth:`VLLMWeightBridge.send_heartbeat` as a function."""
    bridge.send_heartbeat()


def cleanup(bridge: VLLMWeightBridge) -> None:
    """:meth:`VLLMWeightBridge.cleanup` as a function."""
    bridge.cleanup()

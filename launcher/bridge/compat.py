"""The earlier single-file bridge's names, as thin wrappers over :class:`launcher.bridge.trainer.api.Bridge`.

What was a broadcast of an index, a heartbeat of -1 and a shutdown of -2 inside the data plane is a request with a reply
here. Each name does what it says or raises; none reports success without weights having been sent.

New programs use :func:`launcher.bridge.connect`. All names can be imported from :mod:`launcher.bridge`, too.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from launcher.bridge.settings import BridgeSettings
from launcher.bridge.trainer.api import Bridge, connect
from launcher.bridge.trainer.module_state import weights
from launcher.bridge.trainer.rank_group import world
from launcher.bridge.trainer.update import UpdateReport
from launcher.common.errors import BridgeError, TransferError
from launcher.common.jsonio import write_text
from launcher.common.keys import token_from_environment

FILE = "vllm_bridge_config.json"

# (trainer's name, engine's name, dimension that tensor parallelism splits); the first match wins. Both spellings in
# use: Hugging Face's (q_proj, gate_proj) and Meta's (wq, w1).
RULES: tuple[tuple[str, str, int | None], ...] = (
    (r"\.(?:q_proj|k_proj|v_proj)\.", ".qkv_proj.", 0),
    (r"\.(?:wq|wk|wv)\.", ".qkv_proj.", 0),
    (r"\.experts\.\d+\.(?:gate_proj|up_proj|w1|w3)\.weight$", ".experts.w13_weight", 0),
    (r"\.experts\.\d+\.(?:down_proj|w2)\.weight$", ".experts.w2_weight", 1),
    (r"\.(?:gate_proj|up_proj|w1|w3)\.", ".gate_up_proj.", 0),
    (r"\.(o_proj|wo|down_proj|w2)\.weight$", r".\1.weight", 1),
    (r"\b(embed_tokens|tok_embeddings|lm_head|output)\.weight$", r"\1.weight", 0),
)
ROTARY = re.compile(r"\.(?:wq|wk)\.")

FIRST_PORT = 26756

Urls = tuple[str | None, str | None, str | None, list[str] | None]


@dataclass(kw_only=True)
class BridgeConfig:
    """How a trainer rank reaches the engines. In a run, the run's configuration wins where it has the same setting."""

    trainer_rank: int = 0
    world_size: int = 1
    """With ``trainer_rank``: 0 of 1 for what ``torch.distributed`` has; anything else must be the same as that, or
    :meth:`VLLMWeightBridge.initialize` raises."""

    init_method: str = "env://"
    """``env://``: in a run, its engines. Otherwise, and without a run, ``vllm_api_url`` is used."""

    num_inference_nodes: int = 0
    """0: trainer and engines share the node. More: the last N nodes of the job run engines. Read by
    :attr:`is_local_mode` alone: the bridge finds the engines wherever they are."""

    model_name: str = ""
    """Written into the file of :meth:`VLLMWeightBridge.export_param_mappings`."""

    device: str = "cuda"
    """Where the trainer's weights are, ``cuda`` or ``cpu``; sending others raises."""

    timeout_seconds: float = 300.0
    """Longest wait for the engines; without a run, also the deadline of connecting and of each step of an update."""

    log_dir: str | None = field(default_factory=lambda: os.environ.get("LOGDIR"))
    """Directory of the file of :meth:`VLLMWeightBridge.export_param_mappings`."""

    vllm_api_url: str = "http://localhost:9001"
    num_gpus_per_node: int = 8
    """Without a run, trainer rank r is on GPU ``r % num_gpus_per_node`` of node ``r // num_gpus_per_node``."""

    @property
    def is_local_mode(self) -> bool:
        """Trainer and engines share the node."""
        return self.num_inference_nodes == 0

    @property
    def uses_nccl(self) -> bool:
        """Whether weights are sent between GPUs, by NCCL where they are on different hosts, or between CPUs."""
        return self.device.startswith("cuda")

    @classmethod
    def from_training_config(cls, config: Any) -> BridgeConfig:
        """Takes every field that ``config`` has, as an attribute or a key; the rest keep their defaults."""
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
            BridgeError: ``trainer_rank`` and ``world_size`` are not those of ``torch.distributed``.
            TransferError: an engine does not answer.
        """
        if self._bridge is None:
            given, found = (self.config.trainer_rank, self.config.world_size), world()
            if given not in ((0, 1), found):
                raise BridgeError(
                    f"`trainer_rank` ({given[0]}) of `world_size` ({given[1]}) is not what `torch.distributed` has"
                    f" ({found[0]} of {found[1]}). HINT: call `init_process_group` first, or leave both out."
                )
            bridge = connect(self._settings(), ready_timeout_s=self.config.timeout_seconds)
            versions = [info.version for info in bridge.info()]
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

    def notify_update(self) -> list[int | None]:
        """Asks every engine which version it serves; the versions, by replica.

        Raises:
            TransferError: one does not serve the last version that was sent.
        """
        versions = [info.version for info in self._joined().info()]
        if any(version != self._version for version in versions) and self._version > 0:
            raise TransferError(f"Version {self._version} was sent, but the engines serve {versions}.")
        return versions

    def send_heartbeat(self) -> None:
        """Asks every engine whether it is there.

        Raises:
            TransferError: one does not answer, or is quarantined.
        """
        for replica, info in enumerate(self._joined().info()):
            if info.state == "quarantined":
                raise TransferError(f"Replica {replica} is quarantined: an update failed while it was written.")

    def cleanup(self) -> None:
        """Leaves the engines, which go on serving what they have. Safe to call twice."""
        if self._bridge is not None:
            self._bridge.close()
            self._bridge = None

    def export_param_mappings(self, model: nn.Module) -> Path:
        """:func:`export_param_mappings` with ``model_name`` and ``log_dir`` of the configuration."""
        return export_param_mappings(model, self.config.model_name, log_dir=self.config.log_dir)

    def _publish(self, model: nn.Module, names: list[str] | None) -> UpdateReport:
        found = {parameter.device.type for parameter in model.parameters()}
        if found - {torch.device(self.config.device).type}:
            raise BridgeError(f"`device` ({self.config.device}) is not where the weights are ({', '.join(found)}).")
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
        rank, gpus = world()[0], self.config.num_gpus_per_node
        return BridgeSettings(
            urls=(self.config.vllm_api_url,),
            location=(rank // gpus, rank % gpus),
            token=token_from_environment(),
            timeout_s=self.config.timeout_seconds,
        )


def create_bridge_from_training_config(config: Any) -> VLLMWeightBridge:
    """An initialised bridge; ``config`` as for :meth:`BridgeConfig.from_training_config`."""
    bridge = VLLMWeightBridge(BridgeConfig.from_training_config(config))
    bridge.initialize()
    return bridge


broadcast_weights = VLLMWeightBridge.broadcast_weights
broadcast_single_param = VLLMWeightBridge.broadcast_single_param
notify_update = VLLMWeightBridge.notify_update
send_heartbeat = VLLMWeightBridge.send_heartbeat
cleanup = VLLMWeightBridge.cleanup
"""The methods as functions, whose first argument is the bridge."""


def export_param_mappings(
    model: nn.Module,
    model_name: str,
    tp_degree: int = 1,
    dp_shard_degree: int = 1,
    log_dir: str | Path | None = None,
) -> Path:
    """Writes ``vllm_bridge_config.json`` for a model, whole or not at all, and returns its path.

    Each parameter has ``vllm_name``, ``shape``, ``local_shape`` (of this rank's shard), ``dtype``, ``tp_shard_dim``
    (None if tensor parallelism replicates it) and ``needs_permute`` (query and key in Meta's rotary order).

    Args:
        log_dir: where to write; ``$LOGDIR`` if None.

    Raises:
        ValueError: neither ``log_dir`` nor ``$LOGDIR`` is given, or the model has no parameters.
    """
    target = log_dir or os.environ.get("LOGDIR")
    if target is None:
        raise ValueError("`log_dir` is None and `LOGDIR` is not set: there is nowhere to write the mapping.")
    mappings = {weight.name: _mapping(weight.name, weight.parts[0].tensor) for weight in weights(model)}
    if not mappings:
        raise ValueError("The model has no parameters: an empty mapping would make every update an empty one.")
    path = Path(target) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    degrees = {"tp_degree": tp_degree, "dp_shard_degree": dp_shard_degree}
    write_text(path, json.dumps({"model": model_name, **degrees, "param_mappings": mappings}, indent=2) + "\n")
    return path


def _mapping(name: str, tensor: Any) -> dict[str, Any]:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    vllm_name, shard_dim = vllm_location(name)
    return {
        "vllm_name": vllm_name,
        "shape": list(tensor.shape),
        "local_shape": list(local.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "tp_shard_dim": shard_dim,
        "needs_permute": ROTARY.search(name) is not None,
    }


def vllm_location(name: str) -> tuple[str, int | None]:
    """vLLM's name of a trainer's parameter, fused ones included, and the dimension that tensor parallelism splits."""
    for pattern, replacement, shard_dim in RULES:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed, shard_dim
    return name, None


def get_inference_urls(num_inference_nodes: int = 0) -> Urls:
    """Where trainer and engines of a job would meet: ``(master, master_gloo, master_inference, nodelist)``.

    The addresses are ``host:port`` on the job's first node, ``localhost`` for 0 inference nodes; the port numbers count
    up from ``MASTER_PORT`` if that is set, else from 26756. ``nodelist`` holds the last ``num_inference_nodes``
    hostnames. Four None for a negative number or outside SLURM.

    Raises:
        ValueError: the job has too few nodes for that many inference nodes.
    """
    if num_inference_nodes == 0:
        return *_addresses("localhost"), ["localhost"]
    if num_inference_nodes < 0 or "SLURM_JOB_NODELIST" not in os.environ:
        return None, None, None, None
    from submitit.slurm.slurm import SlurmJobEnvironment

    hostnames = list(SlurmJobEnvironment().hostnames)
    if num_inference_nodes >= len(hostnames):
        raise ValueError(
            f"`num_inference_nodes` ({num_inference_nodes}) leaves no trainer among {len(hostnames)} nodes of the job."
        )
    return *_addresses(hostnames[0]), hostnames[-num_inference_nodes:]


def _addresses(host: str) -> tuple[str, str, str]:
    base = int(os.environ.get("MASTER_PORT") or FIRST_PORT)
    return f"{host}:{base}", f"{host}:{base + 1}", f"{host}:{base + 2}"

"""Ranges of single numbers and sets of single words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from launcher.bridge.settings import MODES, UPDATES
from launcher.bridge.transport.choose import TRANSPORTS
from launcher.config.schema import Config

AT_LEAST: dict[str, int] = {
    "layout.nodes": 1,
    "layout.inference_nodes": 0,
    "layout.spares": 0,
    "layout.gpus_per_node": 1,
    "layout.colocate_inference_gpus": 1,
    "model.max_length": 2,
    "model.seed": 0,
    "trainer.workers_per_node": 1,
    "trainer.steps": 1,
    "trainer.prompts_per_step": 1,
    "trainer.samples_per_prompt": 1,
    "trainer.max_new_tokens": 1,
    "trainer.temperature": 0,
    "trainer.seed": 0,
    "inference.tensor_parallel_size": 1,
    "inference.pipeline_parallel_size": 1,
    "inference.replicas_per_node": 1,
    "inference.min_replicas": 1,
    "inference.max_num_seqs": 1,
    "inference.cpu_kvcache_space_gb": 1,
    "inference.drain_timeout_s": 0,
    "restart.max_engine_restarts": 0,
    "restart.engine_backoff_s": 0,
    "restart.max_engine_backoff_s": 0,
    "restart.max_trainer_restarts": 0,
    "restart.startup_failure_window_s": 0,
    "cluster.cpus_per_task": 1,
    "preflight.max_gpu_memory_used": 0,
    "preflight.min_shm_gb": 0,
    "preflight.min_memlock_gb": 0,
    "preflight.min_nofile": 0,
    "preflight.min_disk_gb": 0,
    "preflight.max_clock_skew_s": 0,
    "preflight.bad_node_ttl_s": 0,
    "compile_cache.max_gb": 0,
    "cluster.signal_s": 1,
    "checkpoint.every_steps": 0,
    "restart.max_preemptions": 0,
    "restart.max_timeouts": 0,
    "restart.max_failures": 0,
    "checkpoint.keep": 1,
    "sweep.parallel": 1,
    "cluster.trainer.cpus_per_task": 1,
    "cluster.inference.cpus_per_task": 1,
}
"""Smallest value by setting."""

POSITIVE = (
    "trainer.lr",
    "inference.ready_timeout_s",
    "inference.gpu_memory_utilization",
    "bridge.timeout_s",
    "bridge.rank_timeout_s",
    "checkpoint.stop_timeout_s",
    "checkpoint.write_timeout_s",
    "restart.engine_health_timeout_s",
    "restart.step_timeout_s",
    "restart.stopped_process_timeout_s",
    "restart.count_window_s",
    "start_timeout_s",
    "lease_timeout_s",
    "stop_grace_s",
    "preflight.timeout_s",
)
"""Settings that are greater than zero."""

AT_MOST = {"inference.gpu_memory_utilization": 1, "inference.base_port": 65535, "cluster.signal_s": 65535}

WORDS: dict[str, tuple[str, ...]] = {
    "layout.device": ("cuda", "cpu"),
    "layout.colocate": ("split", "share"),
    "model.dtype": ("bfloat16", "float16", "float32"),
    "bridge.transport": TRANSPORTS,
    "bridge.mode": MODES,
    "bridge.relay": ("auto", "off"),
    "bridge.update": UPDATES,
    "cluster.kind": ("local", "slurm"),
    "cluster.gpu_request": ("gpus-per-node", "gres", "none"),
    "cluster.container_runtime": ("pyxis", "apptainer"),
    "preflight.action": ("fail", "warn", "off"),
}
"""Settings that take one of a few words."""

LOWEST_PORT = 1024


def problems(config: Config) -> Iterator[str]:
    """Single values that are out of range, whatever the others are."""
    for path, minimum in AT_LEAST.items():
        value = _value(config, path)
        if value is not None and not (math.isfinite(value) and value >= minimum):
            yield f"`{path}` ({value}) is not a number from {minimum} up. HINT: set `{path}={max(minimum, 1)}` or more."
    for path in POSITIVE:
        value = _value(config, path)
        if value is not None and not (math.isfinite(value) and value > 0):
            yield f"`{path}` ({value}) is not a number above 0. HINT: give it a positive value, or leave it out."
    for path, maximum in AT_MOST.items():
        value = _value(config, path)
        if value is not None and value > maximum:
            yield f"`{path}` ({value}) is above {maximum}. HINT: set it to {maximum} or less."
    if config.inference.base_port < LOWEST_PORT:
        yield (
            f"`inference.base_port` ({config.inference.base_port}) is below {LOWEST_PORT}, where ports need root."
            " HINT: set `inference.base_port=9000`."
        )
    for path, words in WORDS.items():
        word = _value(config, path)
        if word is not None and word not in words:
            choices = " or ".join(f"`{path}={choice}`" for choice in words)
            yield f"`{path}` ({word}) is not one of {', '.join(words)}. HINT: set {choices}."


def _value(config: Config, path: str) -> Any:
    """The value at ``path``; None where this cluster has no such setting, or where null leaves it open."""
    *groups, name = path.split(".")
    owner: Any = config
    for group in groups:
        owner = getattr(owner, group, None)
    return getattr(owner, name, None)

"""Rules for single values: numbers, words, names, commands and environments."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.bridge.settings import MODES, UPDATES
from launcher.bridge.transport.choose import TRANSPORTS
from launcher.config.metric import REDUCTIONS, Metric
from launcher.config.schema import Config
from launcher.config.secrets import is_secret
from launcher.layout.environment import is_protected
from launcher.preflight.context import NAMES

AT_LEAST: dict[str, int] = {
    **dict.fromkeys(
        (
            *("layout.nodes", "layout.gpus_per_node", "layout.colocate_inference_gpus", "trainer.workers_per_node"),
            *("trainer.steps", "trainer.prompts_per_step", "trainer.samples_per_prompt", "trainer.max_new_tokens"),
            *("inference.tensor_parallel_size", "inference.pipeline_parallel_size", "inference.replicas_per_node"),
            *("inference.min_replicas", "inference.max_num_seqs", "inference.cpu_kvcache_space_gb"),
            *("cluster.cpus_per_task", "cluster.signal_s", "checkpoint.keep", "sweep.parallel"),
            *("cluster.trainer.cpus_per_task", "cluster.inference.cpus_per_task"),
        ),
        1,
    ),
    **dict.fromkeys(
        (
            *("layout.inference_nodes", "layout.spares", "model.seed", "trainer.temperature", "trainer.seed"),
            *("inference.drain_timeout_s", "restart.max_engine_restarts", "restart.engine_backoff_s"),
            *("restart.max_engine_backoff_s", "restart.max_trainer_restarts", "restart.startup_failure_window_s"),
            *("preflight.max_gpu_memory_used", "preflight.min_shm_gb", "preflight.min_memlock_gb"),
            *("preflight.min_nofile", "preflight.min_disk_gb", "preflight.max_clock_skew_s"),
            *("preflight.bad_node_ttl_s", "compile_cache.max_gb", "checkpoint.every_steps", "restart.max_preemptions"),
            *("restart.max_timeouts", "restart.max_failures"),
        ),
        0,
    ),
    "model.max_length": 2,
}
"""Smallest value by setting."""

POSITIVE = (
    *("trainer.lr", "inference.ready_timeout_s", "inference.gpu_memory_utilization"),
    *("bridge.timeout_s", "bridge.rank_timeout_s", "checkpoint.stop_timeout_s", "checkpoint.write_timeout_s"),
    *("restart.engine_health_timeout_s", "restart.step_timeout_s", "restart.stopped_process_timeout_s"),
    *("restart.count_window_s", "start_timeout_s", "lease_timeout_s", "stop_grace_s", "preflight.timeout_s"),
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

UNPRIVILEGED_PORT = 1024


def number_problems(config: Config) -> Iterator[str]:
    """Single values that are out of range."""
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
    if config.inference.base_port < UNPRIVILEGED_PORT:
        yield (
            f"`inference.base_port` ({config.inference.base_port}) is below {UNPRIVILEGED_PORT}, where ports need root."
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


_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def process_problems(config: Config) -> Iterator[str]:
    """What no directory or process can be made of."""
    if not _RUN_NAME.fullmatch(config.name):
        yield (
            f"`name` ({config.name}) cannot be a directory and a job name. HINT: use up to 100 letters, digits and ._-,"
            " a letter or digit first."
        )
    yield from _output_dir(config.output_dir)
    yield from _command(config.trainer.command)
    for path, env in (
        ("cluster.env", config.cluster.env),
        ("trainer.env", config.trainer.env),
        ("inference.env", config.inference.env),
    ):
        yield from _environment_problems(path, env)


def _output_dir(value: str) -> Iterator[str]:
    if not value.strip():
        yield "`output_dir` ('') is empty. HINT: set `output_dir=runs`."
        return
    if value.startswith("~"):
        yield f"`output_dir` ({value}) is not expanded. HINT: set `output_dir={Path(value).expanduser()}`."
        return
    for path in (Path(value), *Path(value).parents):
        if path.exists():
            if not path.is_dir():
                yield f"`output_dir` ({value}) cannot be made: {path} is a file. HINT: name another directory."
            return


def _command(command: list[str] | None) -> Iterator[str]:
    if command is None:
        return
    if not command or not command[0].strip():
        yield (
            f"`trainer.command` ({command}) names no program. HINT: set `trainer.command=[python,train.py]`, or null"
            " for the reference trainer."
        )
    elif len(command) == 1 and " " in command[0].strip() and not Path(command[0]).exists():
        words = ",".join(command[0].split())
        yield (
            f"`trainer.command` ({command[0]!r}) is one word with spaces, and no shell splits it."
            f" HINT: set `trainer.command=[{words}]`."
        )
    elif command[0] in ("torchrun", "accelerate", "deepspeed", "srun", "mpirun"):
        yield (
            f"`trainer.command` ({command[0]} ...) starts processes of its own, but the agent already starts one per"
            " rank. HINT: name the program itself, `trainer.command=[python,train.py]`."
        )
    if any("\0" in word for word in command):
        yield "`trainer.command` holds a null byte. HINT: remove it."


def _environment_problems(path: str, env: dict[str, str]) -> Iterator[str]:
    for name, value in env.items():
        if not _VARIABLE.fullmatch(name):
            yield f"`{path}` ({name}) is no name of a variable. HINT: use letters, digits and _, no digit first."
        elif is_protected(name):
            shown = "" if is_secret(name) else f" ({value})"
            yield f"`{path}.{name}`{shown} is set by the launcher. HINT: leave it out{_owned_hint(name)}."
        elif "\0" in value:
            yield f"`{path}.{name}` holds a null byte. HINT: remove it."


def _owned_hint(name: str) -> str:
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "inference.cpu_kvcache_space_gb",
        "INFER_TP": "inference.tensor_parallel_size",
        "NUM_INFERENCE_NODES": "layout.inference_nodes",
        "NUM_TRAINING_NODES": "layout.nodes",
        "WORLD_SIZE": "trainer.workers_per_node",
        "LOCAL_WORLD_SIZE": "trainer.workers_per_node",
    }
    return f"; `{settings[name]}` decides it" if name in settings else ""


def preflight_problems(config: Config) -> Iterator[str]:
    """Checks to skip that do not exist."""
    for name in config.preflight.skip:
        if name not in NAMES:
            yield f"`preflight.skip` ({name}) is no check. HINT: the checks are {', '.join(NAMES)}."


def sweep_problems(config: Config) -> Iterator[str]:
    """A metric that cannot be computed, a name that is no name of a directory."""
    metric = Metric.parse(config.sweep.metric)
    if not metric.name or metric.reduction not in REDUCTIONS:
        yield (
            f"`sweep.metric` ({config.sweep.metric}) does not end with one of {', '.join(REDUCTIONS)}."
            f" HINT: write `sweep.metric={metric.name or 'reward'}.max`."
        )
    name = config.sweep.name
    if name is not None and (not name.strip() or "/" in name or name in (".", "..")):
        yield f"`sweep.name` ({name}) is no name of a directory. HINT: write one word, such as `sweep.name=lr`."

"""The part of a process's environment that is known before anything runs, and the names that stay ours."""

from __future__ import annotations

from collections.abc import Mapping

from launcher.config.schema import Config
from launcher.layout.model import Role
from launcher.layout.shape import Shape

PROTECTED = frozenset(
    {
        *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
        *("ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES"),
        *("NUM_TRAINING_NODES", "NUM_INFERENCE_NODES", "INFER_TP", "LOGDIR"),
        *("VLLM_CPU_KVCACHE_SPACE", "VLLM_API_KEY", "VLLM_SERVER_DEV_MODE"),
    }
)
"""Names that the launcher sets, or that would open an engine to others; refused in any ``env`` of a configuration."""

PROTECTED_PREFIXES = ("LAUNCHER_", "TORCHELASTIC_", "SLURM_", "SBATCH_")
"""Beginnings of names that are refused, too."""


def is_protected(name: str) -> bool:
    """Whether a configuration may not set ``name``."""
    return name in PROTECTED or name.startswith(PROTECTED_PREFIXES)


def shared_env(config: Config, shape: Shape) -> dict[str, str]:
    """What every process of the run has.

    Environment servers of the Atropos kind divide by ``INFER_TP``, which they take for a number: it is left out where
    its default, 1, is right.
    """
    tensor_parallel = config.inference.tensor_parallel_size
    return {
        "NUM_TRAINING_NODES": str(shape.trainer_nodes),
        "NUM_INFERENCE_NODES": str(config.layout.inference_nodes),
        **({"INFER_TP": str(tensor_parallel)} if tensor_parallel > 1 else {}),
    }


def trainer_env(config: Config, shape: Shape) -> Mapping[str, str]:
    """What every trainer rank has, named as torchrun names it; ranks and addresses are missing here."""
    workers, world_size = shape.workers_per_node, str(shape.workers_per_node * shape.trainer_nodes)
    defaults = {
        # torchrun does the same: otherwise each of several ranks starts a thread per core.
        **({"OMP_NUM_THREADS": "1"} if workers > 1 else {}),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    }
    ours = {
        "LAUNCHER_ROLE": Role.TRAINER.value,
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": str(workers),
        "GROUP_WORLD_SIZE": str(shape.trainer_nodes),
        "ROLE_WORLD_SIZE": world_size,
        "ROLE_NAME": "default",
        "TORCHELASTIC_MAX_RESTARTS": str(config.restart.max_trainer_restarts),
        "TORCHELASTIC_RUN_ID": config.name,
    }
    if config.layout.device == "cuda":
        # All of the node's trainer GPUs and not only the rank's own: torchrun programs call set_device(LOCAL_RANK).
        ours["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(shape.trainer_gpus)))
    else:
        ours["CUDA_VISIBLE_DEVICES"] = ""
    return {**defaults, **config.cluster.env, **config.trainer.env, **shared_env(config, shape), **ours}


def engine_env(config: Config, shape: Shape) -> Mapping[str, str]:
    """What every engine has; ranks, GPUs and addresses are missing here."""
    defaults = {
        # The model always is a directory by the time an engine starts.
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
    }
    ours = {"LAUNCHER_ROLE": Role.INFERENCE.value}
    if config.layout.device == "cpu":
        # `auto` binds the workers of every engine to the same cores, and refuses two workers on one NUMA node.
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        defaults["OMP_NUM_THREADS"] = "1"
        ours["VLLM_CPU_KVCACHE_SPACE"] = str(config.inference.cpu_kvcache_space_gb)
        ours["CUDA_VISIBLE_DEVICES"] = ""
    return {**defaults, **config.cluster.env, **config.inference.env, **shared_env(config, shape), **ours}

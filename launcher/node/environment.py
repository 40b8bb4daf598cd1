"""The complete environment of a worker: the agent's own, the layout's share, and what is known only at run time."""

from __future__ import annotations

import os
from collections.abc import Mapping

from launcher.common.env import (
    LAUNCHER_ADDRESS,
    LAUNCHER_ATTEMPT,
    LAUNCHER_ATTEMPT_DIR,
    LAUNCHER_CONTROL,
    LAUNCHER_EXIT_FILE,
    LAUNCHER_HOSTNAME,
    LAUNCHER_INFERENCE_API_KEY,
    LAUNCHER_LOCAL_HOSTNAMES,
    LAUNCHER_LOCAL_NODE_RANK,
    LAUNCHER_MODEL_PATH,
    LAUNCHER_PROCESS,
    LAUNCHER_RUN_DIR,
    LAUNCHER_SCRATCH,
    LAUNCHER_STOP_FILE,
    LAUNCHER_TOKEN,
)
from launcher.common.keys import api_key
from launcher.layout import Process, Role
from launcher.node.context import NodeContext
from launcher.node.devices import CUDA, visible_devices

# What the agent was told about itself; a worker that starts a run of its own must not inherit it.
OWN = (LAUNCHER_LOCAL_NODE_RANK, LAUNCHER_LOCAL_HOSTNAMES, LAUNCHER_SCRATCH, LAUNCHER_EXIT_FILE)

# What srun's MPI plug-in says of the agent's task, to every rank of the node alike: an MPI library would believe it.
MPI_PREFIXES = ("PMI_", "PMIX_", "SLURM_PMI_", "SLURM_PMIX_")


def worker_environment(context: NodeContext, process: Process, runtime: Mapping[str, str]) -> dict[str, str]:
    """Environment of one worker.

    Args:
        runtime: what depends on the role: rendezvous of the trainers, URLs of the engines.
    """
    inherited = {name: value for name, value in os.environ.items() if not _is_own(name)}
    environ = {
        **inherited,
        **context.config.cluster.env,
        **process.env,
        LAUNCHER_HOSTNAME: context.hostname,
        LAUNCHER_RUN_DIR: str(context.run_dir),
        LAUNCHER_ATTEMPT: str(context.attempt),
        LAUNCHER_ATTEMPT_DIR: str(context.attempt_dir),
        LAUNCHER_CONTROL: context.control,
        LAUNCHER_ADDRESS: context.address,
        LAUNCHER_MODEL_PATH: str(context.model_path),
        LAUNCHER_PROCESS: process.name,
        "LOGDIR": str(context.log_dir),
        "TORCHELASTIC_ERROR_FILE": str(context.log_dir / f"{process.name}.error.json"),
        "PYTHONUNBUFFERED": "1",
        LAUNCHER_TOKEN: context.token,
        LAUNCHER_STOP_FILE: str(context.stop_file),
        **runtime,
    }
    if process.role is Role.INFERENCE:
        environ["VLLM_API_KEY"] = api_key(context.token)
        if "VLLM_HOST_IP" not in process.env:
            environ["VLLM_HOST_IP"] = context.address
        if scratch := os.environ.get(LAUNCHER_SCRATCH):
            # vLLM leaves its sockets behind; there they go with the run.
            environ["VLLM_RPC_BASE_PATH"] = scratch
    elif process.role is Role.TRAINER:
        environ[LAUNCHER_INFERENCE_API_KEY] = api_key(context.token)
    devices, foreign = visible_devices(process.env.get(CUDA, ""), inherited)
    return {name: value for name, value in (environ | devices).items() if name not in foreign}


def _is_own(name: str) -> bool:
    return name in OWN or name.startswith(MPI_PREFIXES)

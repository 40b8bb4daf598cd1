"""The complete environment of a worker: the agent's own, the layout's share, and what is known only at run time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from launcher.control.keys import TOKEN_VARIABLE, api_key
from launcher.layout import Process, Role

# What the agent was told about itself; a worker that starts a run of its own must not inherit it.
OWN = ("LAUNCHER_LOCAL_NODE_RANK", "LAUNCHER_LOCAL_HOSTNAMES")


def worker_environment(
    process: Process,
    *,
    cluster_env: Mapping[str, str],
    run_dir: Path,
    attempt: int,
    attempt_dir: Path,
    control: str,
    token: str,
    address: str,
    model_path: Path,
    error_file: Path,
    runtime: Mapping[str, str],
) -> dict[str, str]:
    """Environment of one worker.

    Args:
        cluster_env: ``cluster.env`` of the configuration.
        control: ``host:port`` of the control service.
        address: this node's address, as its peers reach it.
        error_file: where torch's ``@record`` leaves an exception.
        runtime: what depends on the role: rendezvous of the trainers, URLs of the engines.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in OWN}
    environ = {
        **inherited,
        **cluster_env,
        **process.env,
        "LAUNCHER_RUN_DIR": str(run_dir),
        "LAUNCHER_ATTEMPT": str(attempt),
        "LAUNCHER_ATTEMPT_DIR": str(attempt_dir),
        "LAUNCHER_CONTROL": control,
        "LAUNCHER_ADDRESS": address,
        "LAUNCHER_MODEL_PATH": str(model_path),
        "LAUNCHER_PROCESS": process.name,
        "LOGDIR": str(attempt_dir / "logs"),
        "TORCHELASTIC_ERROR_FILE": str(error_file),
        "PYTHONUNBUFFERED": "1",
        TOKEN_VARIABLE: token,
        **runtime,
    }
    if process.role is Role.INFERENCE:
        environ["VLLM_API_KEY"] = api_key(token)
    elif process.role is Role.TRAINER:
        environ["LAUNCHER_INFERENCE_API_KEY"] = api_key(token)
    given = inherited.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if given != [""] and environ.get("CUDA_VISIBLE_DEVICES"):
        # The layout counts from 0; the allocation may be GPUs 4 to 7 of a shared node.
        planned = [int(index) for index in environ["CUDA_VISIBLE_DEVICES"].split(",")]
        environ["CUDA_VISIBLE_DEVICES"] = ",".join(given[index] for index in planned)
    return environ

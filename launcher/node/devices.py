"""Which GPUs an allocation gives to this node, and which of them a process may use: NVIDIA's and AMD's variables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from launcher.common.errors import AllocationError

CUDA = "CUDA_VISIBLE_DEVICES"
"""Numbers, UUIDs (``GPU-...``) or MIG devices (``MIG-...``); PyTorch for ROCm reads it, too."""

HIP = "HIP_VISIBLE_DEVICES"
"""The same for ROCm alone."""

ROCR = "ROCR_VISIBLE_DEVICES"
"""Below all others on AMD: what HIP and CUDA number are the devices that this one leaves."""

ORDINAL = "GPU_DEVICE_ORDINAL"
"""ROCm's OpenCL, which SLURM sets beside :data:`ROCR`; read by HIP as well."""

AMD_DRIVER = Path("/dev/kfd")
_COUNT = re.compile(r"(\d+)(?:\([^()]*\))?$")


def count_gpus(environ: Mapping[str, str]) -> int | None:
    """GPUs of this node that the allocation gives; None when no variable holds it.

    ``SLURM_GPUS_ON_NODE`` is a number, but sites are known to export ``gpu:8`` or ``h100:8(IDX:0-7)``.
    """
    text = environ.get("SLURM_GPUS_ON_NODE", "").strip()
    if match := _COUNT.search(text):
        return int(match[1])
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        if environ.get(name):
            return len(_devices(environ[name]))
    return count_visible(environ)


def count_visible(environ: Mapping[str, str]) -> int | None:
    """Devices that the vendors' variables leave; None when none is set."""
    counts = [len(_devices(environ[name])) for name in (CUDA, HIP, ROCR) if name in environ]
    return min(counts) if counts else None


def visible_devices(
    planned: str, environ: Mapping[str, str], *, is_amd: bool | None = None
) -> tuple[dict[str, str], frozenset[str]]:
    """The variables of one process: what to set, and what it must not inherit.

    Args:
        planned: GPUs of the layout, which counts from 0 what the allocation gives on the node; empty for none.
        environ: the agent's own.
        is_amd: whether the devices are AMD's; found out if None.

    Raises:
        AllocationError: the allocation gives fewer devices than planned.
    """
    if not planned:
        return {CUDA: ""}, frozenset()
    indices = [int(index) for index in planned.split(",")]
    is_amd = AMD_DRIVER.exists() if is_amd is None else is_amd
    if not is_amd:
        return {CUDA: _chosen(indices, environ, CUDA)}, frozenset()
    # Filters on AMD add up: after ROCR has left some devices, the others number those anew, from 0.
    if _devices(environ.get(ROCR, "")):
        numbers = ",".join(str(index) for index in range(len(indices)))
        return {ROCR: _chosen(indices, environ, ROCR), HIP: numbers, CUDA: numbers}, frozenset({ORDINAL})
    chosen = _chosen(indices, environ, HIP if _devices(environ.get(HIP, "")) else CUDA)
    # vLLM refuses two that differ.
    return {HIP: chosen, CUDA: chosen}, frozenset({ORDINAL})


def _chosen(indices: list[int], environ: Mapping[str, str], name: str) -> str:
    given = _devices(environ.get(name, ""))
    if not given:
        return ",".join(map(str, indices))
    if max(indices) >= len(given):
        raise AllocationError(
            f"`{name}` ({environ[name]}) gives {len(given)} devices, but the layout uses device {max(indices)} of the"
            " node, counted from 0. HINT: see `cluster.gpu_request` for how GPUs are requested."
        )
    return ",".join(given[index] for index in indices)


def _devices(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]

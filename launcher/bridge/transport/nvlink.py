"""Which NVLink fabric of several hosts a GPU belongs to, by NVIDIA's management library."""

from __future__ import annotations

import ctypes

import torch

COMPLETED = 3
"""``NVML_GPU_FABRIC_STATE_COMPLETED``."""


class _FabricInfo(ctypes.Structure):
    """``nvmlGpuFabricInfo_t``."""

    _fields_ = (
        ("cluster", ctypes.c_ubyte * 16),
        ("status", ctypes.c_int),
        ("clique", ctypes.c_uint),
        ("state", ctypes.c_ubyte),
    )


def fabric_of(device: torch.device) -> str:
    """Equal and not empty for GPUs that NVLink joins across hosts; empty where there is no such fabric."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        if library.nvmlInit_v2() != 0:
            return ""
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
        handle, info = ctypes.c_void_p(), _FabricInfo()
        found = (
            library.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)) == 0
            and library.nvmlDeviceGetGpuFabricInfo(handle, ctypes.byref(info)) == 0
            and info.state == COMPLETED
            and any(info.cluster)
        )
    except (OSError, AttributeError):  # There is no such library, or an older one.
        return ""
    return f"{bytes(info.cluster).hex()}-{info.clique}" if found else ""

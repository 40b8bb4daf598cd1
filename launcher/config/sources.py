"""Files of presets as Hydra gets them: with current names of settings, and with text as it was written."""

from __future__ import annotations

from pathlib import Path

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from launcher.common.errors import ConfigError
from launcher.common.paths import conf_dir
from launcher.config.overrides import file_values


class PresetFiles(FileConfigSource):
    """Reads directories of presets: the shipped one, and those of ``--config-dir``."""

    def load_config(self, config_path: str) -> ConfigResult:
        """One file.

        Raises:
            ConfigError: it is not UTF-8, gives a setting under both of its names, or has a command with an open quote.
        """
        try:
            result = super().load_config(config_path)
        except UnicodeDecodeError as error:
            path = Path(self.path) / self._normalize_file_name(config_path)
            raise ConfigError([f"{path} is not UTF-8 text (byte {error.start}). HINT: save it as UTF-8."]) from error
        if isinstance(result.config, DictConfig) and Path(self.path) != conf_dir():
            text = (Path(self.path) / self._normalize_file_name(config_path)).read_text(encoding="utf-8")
            package = _package(config_path, result.header.get("package"))
            data = OmegaConf.to_container(result.config, resolve=False)
            result.config = OmegaConf.create(file_values(data, as_text(text), package))
        return result


def register_preset_files() -> None:
    """Lets Hydra read directories of presets like this."""
    # Hydra registers its own reader when it first looks for plugins.
    Plugins.instance()
    SourcesRegistry.instance().types[PresetFiles.scheme()] = PresetFiles


def as_text(text: str) -> object:
    """A YAML document with every value as it is written."""
    import yaml

    return yaml.load(text, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))


def _package(config_path: str, header: str | None) -> str:
    """Where the content of a file belongs in the configuration; empty for the whole."""
    group = config_path.strip("/").rpartition("/")[0].replace("/", ".")
    package = (header or "_group_").replace("_group_", group)
    return package.removeprefix("_global_").strip(".")

"""Turns an error of Hydra or OmegaConf into one message that names the setting and the nearest valid ones."""

from __future__ import annotations

import difflib
import re
from dataclasses import fields, is_dataclass

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError
from yaml import YAMLError

from launcher.config.overrides import setting_paths
from launcher.config.renamed import RENAMED
from launcher.config.schema import ClusterConfig, Config, LocalClusterConfig, SlurmClusterConfig

COMPOSITION_ERRORS: tuple[type[Exception], ...] = (HydraException, OmegaConfBaseException, YAMLError)
"""What composing a configuration from wrong overrides or files raises."""

# OmegaConf's notes for its own developers.
_NOISE = re.compile(r"\s*(full_key|object_type|reference_type|provider|Config search path)\b.*")
_SEE = re.compile(r"See https://hydra\.cc\S*( for details)?")


def explain(error: Exception) -> str:
    """One message for ``error``, which came up while a configuration was composed."""
    # Hydra does not always raise its own error `from` that of OmegaConf.
    causes = (error.__cause__, error.__context__)
    cause: Exception = next((found for found in causes if isinstance(found, OmegaConfBaseException)), error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _unknown_preset(error.missing_cfg_file, list(error.options or ()), str(error))
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.full_key:
        return _place(error) + _unknown_setting(cause, is_cluster_file=str(error).startswith("In 'cluster/"))
    if isinstance(cause, ValidationError) and cause.full_key:
        return f"{_place(error)}`{cause.full_key}`: {_first_line(cause)}."
    if match := re.match(r"Could not override '(\w+)'\. No match in the defaults list", str(error)):
        group = match.group(1)
        return f"`{group}` is not among the default presets. HINT: add one with a plus sign, `+{group}=...`."
    text = str(error) if cause is error else f"{error}\n{cause}"
    lines = [_SEE.sub("", line).strip() for line in text.splitlines() if not _NOISE.fullmatch(line)]
    return " ".join(line if line[-1] in ".:,;" else f"{line}." for line in lines if line)


def _place(error: Exception) -> str:
    """``In 'cluster/mine': `` if a file, not the command line, is wrong."""
    match = re.match(r"In '[^']*': ", str(error))
    return match.group() if match else ""


def _unknown_preset(missing: str, options: list[str], text: str) -> str:
    group, _, name = missing.rpartition("/")
    choices = [option for option in options if not option.startswith("base")]
    if not group or not choices:
        return f"{text.splitlines()[0]}. HINT: check `--config-dir` and the name of the file."
    near = difflib.get_close_matches(name, choices, n=1)
    guess = f"did you mean `{group}={near[0]}`? " if near else ""
    return f"`{group}={name}` names no preset. HINT: {guess}There are: {', '.join(choices)}."


def _unreadable(error: OverrideParseException) -> str:
    override = error.override.strip()
    if "=" not in override and not override.startswith("~"):
        return (
            f"`{override}` is neither a command nor an override. HINT: overrides have the form `trainer.steps=10`;"
            " `launcher --help` lists the commands."
        )
    return (
        f"`{override}` cannot be read as an override: {_reason(error)}."
        " HINT: quote special characters, as in `'key=\"a=b\"'`."
    )


def _unknown_setting(cause: OmegaConfBaseException, *, is_cluster_file: bool) -> str:
    full_key = str(cause.full_key)
    group, _, name = full_key.rpartition(".")
    owner = cause.object_type
    if full_key in RENAMED:
        return f"`{full_key}` is called `{RENAMED[full_key]}` now. HINT: write that."
    message = f"`{full_key}` is not a setting."
    if owner in (ClusterConfig, LocalClusterConfig) and name in {field.name for field in fields(SlurmClusterConfig)}:
        hint = "let the file begin with `defaults: [slurm, _self_]`" if is_cluster_file else "add `+cluster=slurm`"
        return f"{message[:-1]} of the local cluster. HINT: {hint}."
    siblings = [field.name for field in fields(owner)] if owner is not None and is_dataclass(owner) else []
    prefix = f"{group}." if group else ""
    near = [path for path in setting_paths(Config()) if path.rpartition(".")[2] == name]
    near = near or [f"{prefix}{match}" for match in difflib.get_close_matches(name, siblings, n=1)]
    near = near or difflib.get_close_matches(full_key, setting_paths(Config()), n=2)
    guess = f"did you mean {' or '.join(f'`{path}`' for path in near)}? " if near else ""
    where = f"Settings of `{group}`" if group else "At the top there are"
    return f"{message} HINT: {guess}{where}: {', '.join(siblings)}."


def _reason(error: OverrideParseException) -> str:
    """The parser's message after the repeated override."""
    lines = [_SEE.sub("", line).strip() for line in str(error).splitlines()]
    messages = [line for line in lines if line and not line.startswith("Error parsing override")]
    return messages[0].rstrip(".") if messages else "its grammar is wrong"


def _first_line(error: Exception | str | None) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")

"""Checks a configuration as a whole, and names every problem at once."""

from __future__ import annotations

from launcher.common.errors import ConfigError
from launcher.config.schema import Config
from launcher.submit.rules import (
    cluster,
    engines,
    geometry,
    model,
    numbers,
    preflight,
    processes,
    secrets,
    stopping,
    sweep,
    transport,
)


def problems(config: Config, *, model_is_here: bool = True) -> list[str]:
    """Every problem of ``config``, each with setting, value, conflict and remedy; empty if it can run.

    Looks into the model's directory, unless ``model_is_here`` is false, and starts nothing. What only the cluster knows
    (whether a partition exists) is for the submission to find out.
    """
    found = list(numbers.problems(config))
    if not found:
        # With a number out of range, what does not fit would only be a consequence of it.
        found += geometry.problems(config)
    found += model.problems(config)
    if model_is_here and config.model.path is not None:
        found += model.directory_problems(config, config.model.path)
    for rules in (engines, transport, processes, cluster, preflight, secrets, stopping, sweep):
        found += rules.problems(config)
    return found


def check(config: Config, *, model_is_here: bool = True) -> None:
    """Returns if ``config`` can run.

    Raises:
        ConfigError: it cannot; all problems are in it.
    """
    found = problems(config, model_is_here=model_is_here)
    if found:
        raise ConfigError(found)

"""Checks a configuration as a whole, and names every problem at once."""

from __future__ import annotations

from launcher.common.errors import ConfigError
from launcher.config.schema import Config
from launcher.submit.rules.engines import directory_problems, engine_problems, model_problems, transport_problems
from launcher.submit.rules.geometry import geometry_problems
from launcher.submit.rules.secrets import secret_problems
from launcher.submit.rules.slurm import slurm_problems, stopping_problems
from launcher.submit.rules.values import number_problems, preflight_problems, process_problems, sweep_problems

RULES = (
    *(engine_problems, transport_problems, process_problems, slurm_problems, preflight_problems, secret_problems),
    *(stopping_problems, sweep_problems),
)
"""Rules that do not depend on the result of others, in the order of their messages."""


def problems(config: Config, *, model_is_here: bool = True) -> list[str]:
    """Every problem of ``config``, each with setting, value, conflict and remedy; empty if it can run.

    Looks into the model's directory, unless ``model_is_here`` is false, and starts nothing. What only the cluster knows
    (whether a partition exists) is for the submission to find out.
    """
    found = list(number_problems(config))
    if not found:
        # With a number out of range, what does not fit would only be a consequence of it.
        found += geometry_problems(config)
    found += model_problems(config)
    if model_is_here and config.model.path is not None:
        found += directory_problems(config, config.model.path)
    for rule in RULES:
        found += rule(config)
    return found


def check(config: Config, *, model_is_here: bool = True) -> None:
    """Returns if ``config`` can run.

    Raises:
        ConfigError: it cannot; all problems are in it.
    """
    found = problems(config, model_is_here=model_is_here)
    if found:
        raise ConfigError(found)

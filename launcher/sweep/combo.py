"""One run of a sweep as it is asked for, and all of its problems before any is started."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.common.errors import ConfigError, LauncherError
from launcher.config import typed
from launcher.config.compose import MissingSettings
from launcher.config.explain import COMPOSITION_ERRORS, explain
from launcher.config.schema import Config
from launcher.config.secrets import unset_secrets
from launcher.submit.validate import problems
from launcher.sweep.identity import identity

if TYPE_CHECKING:
    from omegaconf import DictConfig

NAMED = 3
"""Runs that a problem names before it only counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """One run that is wanted."""

    overrides: tuple[str, ...]
    """Its values of the settings that the sweep varies."""

    config: Config
    identity: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of a sweep as a whole."""

    directory: Path
    is_optimising: bool = False
    """Whether the sweeper chooses the next runs by what these come to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to, as far as it was followed."""

    code: int = 0
    value: float | None = None
    """The metric."""

    error: LauncherError | None = field(default=None)
    """Why there is no value that an optimising sweeper could go by."""


def compose_all(
    composed: Callable[[int], DictConfig], overrides: Sequence[tuple[str, ...]], swept: Collection[str]
) -> list[Combination]:
    """Composes every run and checks it.

    Args:
        composed: the configuration of the run with this number, Hydra's own part included.
        overrides: what each run has for itself, to name it.

    Raises:
        ConfigError: some cannot run; each problem once, with the runs that have it.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    found: dict[str, list[int]] = {}
    batch = []
    for number, words in enumerate(overrides):
        try:
            whole = composed(number)
            # Some settings may refer to Hydra's own, as in `name: run-${hydra:job.num}`.
            HydraConfig.instance().set_config(whole)
            OmegaConf.set_struct(whole, False)
            del whole["hydra"]
            config = typed(whole)
            texts: Sequence[str] = [*problems(config), *unset_secrets(config)]
        except MissingSettings as error:
            texts = [*error.problems, *problems(error.config)]
        except ConfigError as error:
            texts = error.problems
        except COMPOSITION_ERRORS as error:
            texts = [explain(error)]
        if texts:
            for text in texts:
                found.setdefault(text, []).append(number)
        else:
            batch.append(Combination(overrides=words, config=config, identity=identity(config, swept)))
    if found:
        raise ConfigError(grouped(found, overrides))
    return batch


def grouped(found: dict[str, list[int]], overrides: Sequence[tuple[str, ...]]) -> list[str]:
    """Each problem with the runs that have it."""
    return [f"{text}\n    in {_which(numbers, overrides)}" for text, numbers in found.items()]


def _which(numbers: Sequence[int], overrides: Sequence[tuple[str, ...]]) -> str:
    if len(numbers) == len(overrides) > 1:
        return f"all {len(overrides)} runs"
    named = "; ".join(" ".join(overrides[number]) or "the only run" for number in numbers[:NAMED])
    more = len(numbers) - NAMED
    return f"{len(numbers)} of {len(overrides)} runs: {named}" + (f"; and {more} more" if more > 0 else "")

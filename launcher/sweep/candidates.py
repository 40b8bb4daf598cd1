"""The runs that a sweep wants: the combinations of its values, the identity of each run, and their problems."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from launcher.common.errors import ConfigError, LauncherError
from launcher.config import typed
from launcher.config.compose import MissingSettings
from launcher.config.explain import COMPOSITION_ERRORS, explain
from launcher.config.renamed import current_name
from launcher.config.schema import Config
from launcher.config.secrets import unset_secrets
from launcher.submit.validate import problems
from launcher.sweep import SWEEPS

if TYPE_CHECKING:
    pass


def combinations(overrides: Sequence[Override], zipped: Sequence[str] = ()) -> list[list[str]]:
    """The overrides of each run, in the order of the command line; the last setting changes fastest.

    Args:
        zipped: settings whose first values go together, whose second values go together, and so on.

    Raises:
        ConfigError: ``zipped`` names a setting that is not swept, or their numbers of values differ.
    """
    if problems := _continuous(overrides):
        raise ConfigError(problems)
    zipped = [current_name(key) for key in zipped]
    values = {override.get_key_element(): _values(override) for override in overrides}
    if problems := _zip_problems(overrides, values, zipped):
        raise ConfigError(problems)
    # One axis for each setting, but one for all of the paired ones, where the first of them stands.
    axes: dict[str, list[tuple[str, ...]]] = {}
    for key, words in values.items():
        axis = "zip" if _bare(key) in zipped else key
        before = axes.get(axis)
        axes[axis] = [(*others, word) for others, word in zip(before or [()] * len(words), words, strict=True)]
    return [[word for words in choice for word in words] for choice in itertools.product(*axes.values())]


def swept_keys(overrides: Sequence[Override]) -> frozenset[str]:
    """Settings that take more than one value, without Hydra's plus signs."""
    return frozenset(_bare(override.get_key_element()) for override in overrides if override.is_sweep_override())


def key_of(override: str) -> str:
    """``trainer.lr`` of ``+trainer.lr=0.1``."""
    return _bare(override.partition("=")[0])


def _values(override: Override) -> list[str]:
    key = override.get_key_element()
    if override.is_sweep_override():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [key if override.is_delete() else f"{key}={override.get_value_element_as_str()}"]


def _continuous(overrides: Sequence[Override]) -> list[str]:
    return [
        f"`{override.input_line}` is a range without steps, of which only an optimising sweeper can choose."
        " HINT: add `hydra/sweeper=optuna`, or list the values: `a,b,c` or `range(1,10,step=3)`."
        for override in overrides
        if override.is_sweep_override() and not override.is_discrete_sweep()
    ]


def _zip_problems(overrides: Sequence[Override], values: dict[str, list[str]], zipped: Sequence[str]) -> list[str]:
    if not zipped:
        return []
    swept = swept_keys(overrides)
    problems = [
        f"`sweep.zip` names `{key}`, which has no list of values. HINT: write `{key}=a,b`, or leave it out of"
        " `sweep.zip`."
        for key in zipped
        if key not in swept
    ]
    counts = {_bare(key): len(words) for key, words in values.items() if _bare(key) in zipped}
    if len(zipped) == 1:
        problems.append(f"`sweep.zip` ({zipped[0]}) pairs one setting with nothing. HINT: name two or more.")
    if not problems and len(set(counts.values())) > 1:
        listed = ", ".join(f"`{key}` has {count} values" for key, count in counts.items())
        problems.append(f"`sweep.zip` pairs settings of different lengths: {listed}. HINT: give each as many values.")
    return problems


def _bare(key: str) -> str:
    return key.lstrip("+~")


LENGTH = 12
"""Hexadecimal digits of an identity: two of a million runs share one with a chance of 0.002."""

NOT_IN_IDENTITY = (
    *("name", "output_dir", "sweep", "snapshot", "secrets", "preflight", "restart", "checkpoint"),
    *("start_timeout_s", "lease_timeout_s", "stop_grace_s", "layout.hostnames", "layout.spares"),
    *("inference.base_port", "inference.strict_ports", "inference.ready_timeout_s", "inference.drain_timeout_s"),
    *("inference.min_replicas", "bridge.timeout_s", "cluster"),
)
"""Settings, and groups of them, about where, how and under which name a run is done, not about its result."""

KEPT = ("cluster.env", "cluster.setup", "cluster.container")
"""What counts nevertheless: it changes the programs' surroundings."""


def identity(config: Config, swept: Collection[str] = ()) -> str:
    """The hash of ``config`` without :data:`NOT_IN_IDENTITY`; the same on every machine.

    The program itself, which ``trainer.command`` names, is not looked into.

    Args:
        swept: settings that the sweep varies. They always count: a sweep over a timeout is about its effect.
    """
    leaves = {path: value for path, value in _leaves(asdict(config)) if changes_result(path, swept)}
    text = json.dumps(leaves, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def changes_result(path: str, swept: Collection[str] = ()) -> bool:
    """Whether a setting is part of the identity."""
    return _is_below(path, KEPT) or _is_below(path, swept) or not _is_below(path, NOT_IN_IDENTITY)


def sweep_name(name: str, overrides: Sequence[str]) -> str:
    """The name of a sweep that was given none: the same for the same command in any order of its words."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    swept = swept_keys(OverridesParser.create().parse_overrides(list(overrides)))
    words = sorted(word.lstrip("+") for word in overrides if changes_result(key_of(word), swept))
    return f"{name}-{hashlib.sha256(json.dumps(words).encode()).hexdigest()[:6]}"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _is_below(path: str, places: Collection[str]) -> bool:
    return any(path == place or path.startswith(f"{place}.") for place in places)


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
class SweepRequest:
    """A sweep as a whole."""

    directory: Path
    is_optimising: bool = False
    """Whether the sweeper chooses the next runs by the results of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """The result of a run, if it was followed."""

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

"""The combinations of a sweep: the product of all values, except for settings that are paired."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hydra.core.override_parser.types import Override

from launcher.common.errors import ConfigError


def combinations(overrides: Sequence[Override], zipped: Sequence[str] = ()) -> list[list[str]]:
    """The overrides of each run, in the order of the command line; the last setting changes fastest.

    Args:
        zipped: settings whose first values go together, whose second values go together, and so on.

    Raises:
        ConfigError: ``zipped`` names a setting that is not swept, or their numbers of values differ.
    """
    if problems := _continuous(overrides):
        raise ConfigError(problems)
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

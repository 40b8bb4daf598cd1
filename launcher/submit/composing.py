"""What the commands that compose a configuration share: a wrong override, or a wrong file, ends in one message."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from launcher.common.errors import ConfigError, UsageError

HYDRA_FULL_ERROR = "HYDRA_FULL_ERROR"
"""Hydra's switch: set to 1, a person sees its errors with their traceback."""


@contextmanager
def explained() -> Iterator[None]:
    """Ends a wrong override, or a wrong file of ``conf``, in one message.

    Raises:
        UsageError: with that message.
        ConfigError: mandatory settings are missing; every other problem is named as well.
    """
    from launcher.config.compose import MissingSettings
    from launcher.config.explain import COMPOSITION_ERRORS, explain
    from launcher.submit.validate import problems

    try:
        yield
    except MissingSettings as error:
        raise ConfigError([*error.problems, *problems(error.config)]) from None
    except COMPOSITION_ERRORS as error:
        if os.environ.get(HYDRA_FULL_ERROR) == "1":
            raise
        raise UsageError(explain(error)) from error


@contextmanager
def hydra_full_error(value: str | None) -> Iterator[None]:
    """Sets Hydra's switch for a while, or takes it away: the processes of a run must not inherit our use of it."""
    before = os.environ.get(HYDRA_FULL_ERROR)
    _set(HYDRA_FULL_ERROR, value)
    try:
        yield
    finally:
        _set(HYDRA_FULL_ERROR, before)


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value

"""What the commands that compose a configuration share: a wrong override, or a wrong file, ends in one message."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from launcher.cli.parser import UsageError

HYDRA_FULL_ERROR = "HYDRA_FULL_ERROR"
"""Hydra's switch: set to 1, a person sees its errors with their traceback."""


@contextmanager
def explained() -> Iterator[None]:
    """Ends a wrong override, or a wrong file of ``conf``, in one message.

    Raises:
        UsageError: with that message.
    """
    from launcher.config.explain import COMPOSITION_ERRORS, explain

    try:
        yield
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

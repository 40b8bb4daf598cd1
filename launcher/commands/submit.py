"""``launcher [overrides]``, or ``launcher submit [overrides]``: one run, or with ``-m`` a sweep."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from launcher.commands.composing import HYDRA_FULL_ERROR, explained, hydra_full_error
from launcher.commands.help import show_help
from launcher.errors import ConfigError, LauncherError
from launcher.paths import conf_dir

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(arguments: Sequence[str]) -> int:
    """One run, or with ``-m`` one after the other; the exit code is the worst of theirs."""
    if {"--help", "-h"} & set(arguments):
        return show_help()
    import hydra

    from launcher.config import register_configs, typed
    from launcher.config.rules.secrets import word_problems

    # Before Hydra, which keeps a record of a sweep's overrides.
    if found := list(word_problems(arguments)):
        raise ConfigError(found)

    codes: list[int] = []
    full_errors = os.environ.get(HYDRA_FULL_ERROR)

    def task(composed: DictConfig) -> None:
        try:
            with hydra_full_error(full_errors):
                with explained():
                    config = typed(composed)

                from launcher.run import run

                codes.append(run(config))
        except LauncherError as error:
            # Here, not in main: the next run of a sweep goes on after one that failed.
            print(f"launcher: {error}", file=sys.stderr)
            codes.append(error.exit_code)
        except Exception as error:
            raise _Unexpected from error

    register_configs()
    # An absolute path: a relative one works with `python -m launcher` but not from the console script.
    start = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)
    try:
        # Hydra would print its errors and end the process; like this it raises them.
        with explained(), hydra_full_error("1"), _argv(arguments):
            start()
    except _Unexpected as error:
        raise error.__cause__ or error from None
    return max(codes, default=0)


class _Unexpected(Exception):
    """Carries an error of a run past the handlers that are meant for wrong overrides."""


@contextmanager
def _argv(arguments: Sequence[str]) -> Iterator[None]:
    """Lends ``arguments`` to Hydra, which reads ``sys.argv`` only."""
    before = sys.argv
    sys.argv = ["launcher", *arguments]
    try:
        yield
    finally:
        sys.argv = before

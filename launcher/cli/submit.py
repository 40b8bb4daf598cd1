"""``launcher [overrides]``, or ``launcher submit [overrides] [--json]``: one run, or with ``-m`` a sweep."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

from launcher.cli.commands import show_help
from launcher.common.errors import ConfigError, LauncherError, UsageError
from launcher.common.paths import conf_dir
from launcher.submit.composing import HYDRA_FULL_ERROR, explained, hydra_full_error

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from launcher.config.schema import Config

JSON = "--json"
MULTIRUN = ("-m", "--multirun")
"""Hydra takes them in front of the overrides only."""


def main(arguments: Sequence[str]) -> int:
    """One run, or with ``-m`` a sweep; the exit code is the worst of the runs'."""
    if {"--help", "-h"} & set(arguments):
        return show_help()
    from launcher.config import register_configs
    from launcher.config.overrides import as_meant
    from launcher.submit.rules.secrets import word_problems

    is_json = JSON in arguments
    arguments = [word for word in arguments if word != JSON]
    if is_json and set(MULTIRUN) & set(arguments):
        raise UsageError(
            f"`{JSON}` is for a single run. HINT: `launcher sweep status DIR {JSON}` shows those of a sweep."
        )
    # Before a sweep's ledger keeps a record of the overrides.
    if found := list(word_problems(arguments)):
        raise ConfigError(found)
    arguments = as_meant(arguments)

    task = HydraTask(os.environ.get(HYDRA_FULL_ERROR), is_json=is_json)
    register_configs()
    composed = _single(arguments)
    if composed is not None:
        try:
            task(composed)
        except _Unexpected as error:
            raise error.__cause__ or error from None
        return max(task.codes)
    import hydra

    from launcher.sweep.candidates import register_plugins

    register_plugins()
    # An absolute path: a relative one works with `python -m launcher` but not from the console script.
    start = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)
    try:
        # Hydra would print its errors and end the process; like this it raises them.
        with explained(), hydra_full_error("1"), _argv(sorted(arguments, key=lambda word: word not in MULTIRUN)):
            start()
    except _Unexpected as error:
        raise error.__cause__ or error from None
    return max(task.codes, default=0)


def _single(arguments: Sequence[str]) -> DictConfig | None:
    """The configuration of a single run; None if it is none, or Hydra is to report an error in it.

    Hydra's own way for programs composes everything twice, the first time only to learn whether it is a sweep.
    """
    if any(word.startswith("-") for word in arguments):
        return None
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import open_dict

    from launcher.config.explain import COMPOSITION_ERRORS

    try:
        with hydra.initialize_config_dir(str(conf_dir()), job_name="launcher", version_base="1.3"):
            composed = hydra.compose("config", overrides=list(arguments), return_hydra_config=True)
    except COMPOSITION_ERRORS:
        return None
    if composed.hydra.mode is RunMode.MULTIRUN:
        return None
    HydraConfig.instance().set_config(composed)
    with open_dict(composed):
        del composed["hydra"]
    return composed


class HydraTask:
    """What Hydra calls with a composed configuration; the launcher of a sweep starts its runs itself and adds to it.

    Args:
        full_errors: Hydra's switch as it was before it was lent to Hydra.
        is_json: standard output is for one line of JSON, the rest goes to standard error.
    """

    def __init__(self, full_errors: str | None, *, is_json: bool = False) -> None:
        self.codes: list[int] = []
        """Exit codes of all runs."""
        self.full_errors = full_errors
        self.is_json = is_json

    def __call__(self, composed: DictConfig) -> None:
        """Starts one run."""
        from launcher.config import typed

        try:
            with hydra_full_error(self.full_errors):
                with explained():
                    config = typed(composed)

                self.codes.append(_run_and_tell(config) if self.is_json else _run(config))
        except LauncherError as error:
            # Here, not in main: Hydra would add its own words to an error that passes through it.
            print(f"launcher: {error}", file=sys.stderr)
            self.codes.append(error.exit_code)
        except Exception as error:
            raise _Unexpected from error


def _run(config: Config) -> int:
    from launcher.submit.run import run

    return run(config)


def _run_and_tell(config: Config) -> int:
    from launcher.observe.run_summary import job_id_of
    from launcher.submit.run import run
    from launcher.submit.run_dir import new_run_dir

    path = new_run_dir(config)
    with redirect_stdout(sys.stderr):
        code = run(config, path=path)
    print(json.dumps({"run_dir": str(path), "job_id": job_id_of(path), "exit_code": code}))
    return code


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

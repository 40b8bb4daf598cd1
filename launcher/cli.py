"""The command line: ``launcher [overrides]`` runs, ``launcher plan [overrides]`` shows what would run.

python -m launcher
python -m launcher +cluster=slurm experiment=qwen3_8b model.path=/models/Qwen3-8B
python -m launcher plan layout.nodes=8 --json
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import LauncherError
from launcher.paths import conf_dir

if TYPE_CHECKING:
    from omegaconf import DictConfig

USAGE_ERROR = 2
INTERRUPTED = 130
_HYDRA_FULL_ERROR = "HYDRA_FULL_ERROR"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; an expected failure is one message on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except LauncherError as error:
        print(f"launcher: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("launcher: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # `launcher plan | head`: whoever read has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(arguments: Sequence[str]) -> int:
    command = COMMANDS.get(arguments[0]) if arguments else None
    if command is not None:
        return command(arguments[1:])
    return show_help() if {"--help", "-h"} & set(arguments) else _run(arguments)


def show_help(arguments: Sequence[str] = ()) -> int:
    """``launcher --help``: the commands, and the presets of each group."""
    directory = conf_dir()
    groups = sorted(path for path in directory.iterdir() if path.is_dir())
    presets = [f"  {group.name:<11} {', '.join(sorted(p.stem for p in group.glob('*.yaml')))}" for group in groups]
    print(_HELP.format(presets="\n".join(presets), directory=directory))
    return 0


def show_version(arguments: Sequence[str] = ()) -> int:
    """``launcher --version``."""
    from launcher import __version__

    print(f"launcher {__version__}")
    return 0


def show_plan(arguments: Sequence[str]) -> int:
    """``launcher plan [overrides] [--json]``: the layout of a run, without starting anything."""
    from launcher.config import check, compose
    from launcher.layout import layout_to_json, plan, render_table

    parser = argparse.ArgumentParser(prog="launcher plan", description="Shows who would be where; starts nothing.")
    parser.add_argument("overrides", nargs="*", help="as for a run; `layout.hostnames=[a,b]` gives nodes their names")
    parser.add_argument("--json", action="store_true", help="print every process with its command and environment")
    parser.add_argument("--config-dir", "-cd", type=Path, help="directory of further presets")
    options = parser.parse_intermixed_args(arguments)
    with _explained():
        config = compose(options.overrides, options.config_dir)
    # A layout may be planned on a laptop for a model that only the cluster has.
    check(config, model_is_here=False)
    layout = plan(config)
    print(layout_to_json(layout).rstrip() if options.json else render_table(layout))
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "plan": show_plan,
    "--help": show_help,
    "-h": show_help,
    "help": show_help,
    "--version": show_version,
}
"""Commands by their first word; anything else is a run."""


def _run(arguments: Sequence[str]) -> int:
    """One run, or with ``-m`` one after the other; the exit code is the worst of theirs."""
    import hydra

    from launcher.config import register_configs, typed

    codes: list[int] = []
    full_errors = os.environ.get(_HYDRA_FULL_ERROR)

    def task(composed: DictConfig) -> None:
        try:
            with _hydra_full_error(full_errors):
                with _explained():
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
        with _explained(), _hydra_full_error("1"), _argv(arguments):
            start()
    except _Unexpected as error:
        raise error.__cause__ or error from None
    return max(codes, default=0)


class _Unexpected(Exception):
    """Carries an error of a run past the handlers that are meant for wrong overrides."""


@contextmanager
def _explained() -> Iterator[None]:
    """Ends a wrong override, or a wrong file of ``conf``, in one message."""
    from launcher.config.explain import COMPOSITION_ERRORS, explain

    try:
        yield
    except COMPOSITION_ERRORS as error:
        if os.environ.get(_HYDRA_FULL_ERROR) == "1":
            raise
        raise _UsageError(explain(error)) from error


class _UsageError(LauncherError):
    """The command line is wrong."""

    exit_code = USAGE_ERROR


@contextmanager
def _argv(arguments: Sequence[str]) -> Iterator[None]:
    """Lends ``arguments`` to Hydra, which reads ``sys.argv`` only."""
    before = sys.argv
    sys.argv = ["launcher", *arguments]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _hydra_full_error(value: str | None) -> Iterator[None]:
    """Sets Hydra's switch for a while, or takes it away: the processes of a run must not inherit our use of it."""
    before = os.environ.get(_HYDRA_FULL_ERROR)
    _set(_HYDRA_FULL_ERROR, value)
    try:
        yield
    finally:
        _set(_HYDRA_FULL_ERROR, before)


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


_HELP = """\
Puts reinforcement-learning post-training on a SLURM cluster: the first nodes train, the last N run vLLM.

Usage:
  launcher [overrides]             run: on this machine, or with +cluster=slurm on a cluster
  launcher plan [overrides]        show who would be where (--json: every process); starts nothing
  launcher -m [overrides]          a sweep: one run after the other, trainer.lr=1e-4,1e-3
  launcher --cfg job [overrides]   show the whole configuration
  launcher --help | --version | --hydra-help

Overrides choose presets or set values:
  experiment=qwen3_8b model.path=/models/Qwen3-8B      +cluster=slurm cluster.partition=gpu cluster.time=01:00:00
  layout.nodes=4 layout.inference_nodes=2              --config-dir DIR adds presets of your own

Presets ({directory}):
{presets}
  (cluster is added with a plus sign; without it the nodes are processes of this machine)"""

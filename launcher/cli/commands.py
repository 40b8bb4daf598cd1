"""The commands: one table, and one file for each. Looking at the table imports none of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launcher.common.paths import conf_dir

Main = Callable[[Sequence[str]], int]
"""What a command's module offers as ``main``: takes the words after the command, returns the exit code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command, as the help lists it."""

    name: str
    group: str
    usage: str
    """What follows the name, for people: ``RUN [-- COMMAND]``."""

    summary: str
    module: str = ""
    """Module of this package that holds ``main``; the command's own name when empty."""

    def load(self) -> Main:
        """Imports the command."""
        main: Main = importlib.import_module(f"launcher.cli.{self.module or self.name}").main
        return main


START, LOOK, STEER, TOOLS = "Start", "Look", "Steer", "Tools"
GROUPS = (START, LOOK, STEER, TOOLS)
"""In the order of the help."""

# A new command is one line here and one file beside this one.
_ALL = (
    Command(name="submit", group=START, usage="[overrides]", summary="the same with its name, as in scripts"),
    Command(
        name="replay",
        group=START,
        usage="RUN [overrides]",
        summary="a run again: its configuration, its code; what changed since",
    ),
    Command(name="plan", group=START, usage="[overrides]", summary="who would be where; starts nothing"),
    Command(name="render", group=START, usage="[overrides] [-o FILE]", summary="a job script to read, edit and sbatch"),
    Command(name="inspect", group=START, usage="NODE|RANK [overrides]", summary="what one node or rank would execute"),
    Command(name="resume", group=START, usage="RUN", summary="go on with a run that has ended, from its checkpoint"),
    Command(name="runs", group=LOOK, usage="[--all|--prune]", summary="all runs: state, steps, reward, job"),
    Command(name="status", group=LOOK, usage="[RUN]", summary="where a run stands; live on a terminal"),
    Command(name="why", group=LOOK, usage="[RUN]", summary="which process failed first, and whether to retry"),
    Command(name="nodes", group=LOOK, usage="[forget NODE ...]", summary="nodes that were bad and are left out"),
    Command(name="logs", group=LOOK, usage="RUN [-f]", summary="what its processes wrote, merged"),
    Command(name="sweep", group=LOOK, usage="status|results|cancel DIR", summary="the runs of a sweep (launcher -m)"),
    Command(name="ui", group=LOOK, usage="[RUN|DIR]", summary="a page about a run, or a sweep, in a browser"),
    Command(name="attach", group=STEER, usage="RUN [-- COMMAND]", summary="a shell, or a command, on one of its nodes"),
    Command(name="cancel", group=STEER, usage="RUN ...", summary="end runs, and wait until they have ended"),
    Command(name="models", group=TOOLS, usage="[NAME ...]", summary="models that updates were shown to be right for"),
    Command(name="completion", group=TOOLS, usage="bash|zsh|fish", summary="completion for a shell"),
)

COMMANDS: dict[str, Command] = {command.name: command for command in _ALL}
"""Commands by their first word; any other words are the overrides of a run."""

OLD_NAMES = {"explain": "inspect"}
"""Names that commands had in an earlier version -> the name now; accepted for one version, with a warning."""


def show_help() -> int:
    """The commands by group, and the presets of each configuration group."""
    directory = conf_dir()
    groups = sorted(path for path in directory.iterdir() if path.is_dir())
    presets = [f"  {group.name:<11} {', '.join(sorted(p.stem for p in group.glob('*.yaml')))}" for group in groups]
    print(_HELP.format(commands="\n".join(_commands()), presets="\n".join(presets), directory=directory))
    return 0


def show_version() -> int:
    """The version of the package."""
    from launcher import __version__

    print(f"launcher {__version__}")
    return 0


def _commands() -> list[str]:
    lines = []
    for group in GROUPS:
        commands = [command for command in COMMANDS.values() if command.group == group]
        if commands:
            lines += ["", f"{group}:"]
            lines += [f"  {f'{command.name} {command.usage}':<34} {command.summary}" for command in commands]
    return lines


_HELP = """\
Puts reinforcement-learning post-training on a SLURM cluster: the first nodes train, the last N run vLLM.

Usage:
  launcher [overrides]               run: on this machine, or with +cluster=slurm on a cluster
  launcher -m [overrides]            a sweep: a run of each combination, trainer.lr=1e-4,1e-3
  launcher --json [overrides]        a run, reported as one line of JSON
  launcher --cfg job [overrides]     show the whole configuration
  launcher COMMAND --help            how a command is used, with an example and its exit codes
  launcher --help | --version | --hydra-help
{commands}

Overrides choose presets or set values:
  experiment=qwen3_8b model.path=/models/Qwen3-8B      +cluster=slurm cluster.partition=gpu cluster.time=01:00:00
  layout.nodes=4 layout.inference_nodes=2              --config-dir DIR adds presets of your own

Exit codes:
  0 done or queued; 2 wrong configuration, nothing was started; 3 `sbatch` refused; 4 another allocation than planned;
  5 a process failed; 6 node 0 cannot be reached; 7 a bad node; 9 stopped with a checkpoint; 130, 143 interrupted

Presets ({directory}):
{presets}
  (cluster is added with a plus sign; without it the nodes are processes of this machine)"""

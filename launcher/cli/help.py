"""``launcher --help`` and ``launcher --version``."""

from __future__ import annotations

from launcher.cli.commands import COMMANDS, GROUPS
from launcher.common.paths import conf_dir


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
  launcher --json [overrides]        a run, told as one line of JSON
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

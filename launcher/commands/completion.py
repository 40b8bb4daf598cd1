"""``launcher completion bash|zsh|fish``: what a shell needs to complete commands, runs, presets and settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from launcher.commands import COMMANDS
from launcher.commands.parser import CommandParser
from launcher.paths import conf_dir

OUTPUT_DIR = "--output-dir"
MOST_RUNS = 100
SCRIPTS = {
    # bash takes `=` as the end of a word, so what stands before it must not be repeated.
    "bash": """\
_launcher() {
    local IFS=$'\\n'
    COMPREPLY=($(launcher completion bash --line "${COMP_LINE:0:$COMP_POINT}" 2>/dev/null))
}
complete -o nospace -F _launcher launcher""",
    "zsh": """\
_launcher() {
    local -a found
    found=("${(@f)$(launcher completion zsh --line "${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
    compadd -S '' -- $found
}
compdef _launcher launcher""",
    "fish": "complete -c launcher -f -a '(launcher completion fish --line (commandline -cp) 2>/dev/null)'",
}


def main(arguments: Sequence[str]) -> int:
    """Prints the script, or, when the script asks, the candidates."""
    parser = CommandParser(
        "completion",
        "Prints the completion script of a shell: commands, names of runs, presets of the configuration, settings.",
        examples=['eval "$(launcher completion bash)"', "launcher completion fish | source"],
    )
    parser.add_argument("shell", choices=sorted(SCRIPTS))
    parser.add_argument("--line", help="the line so far; prints what may follow (the scripts ask like this)")
    options = parser.parse_args(arguments)
    if options.line is None:
        print(SCRIPTS[options.shell])
        return 0
    for candidate in candidates(options.line):
        print(
            candidate.rpartition("=")[2] if options.shell == "bash" and "=" in options.line.split()[-1] else candidate
        )
    return 0


def candidates(line: str) -> list[str]:
    """What may stand in the place of the last word of ``line``; a word that is finished ends with a space."""
    words = line.split()[1:] + ([""] if line.endswith(" ") else [])
    if not words:
        return []
    *before, word = words
    if not before and "=" not in word:
        found: Iterable[str] = [*(f"{name} " for name in COMMANDS), *_overrides(word)]
    elif before and "RUN" in (COMMANDS[before[0]].usage if before[0] in COMMANDS else "") and "=" not in word:
        found = [f"{name} " for name in _runs(before)]
    else:
        found = _overrides(word)
    return [candidate for candidate in found if candidate.startswith(word)]


def _runs(before: Sequence[str]) -> list[str]:
    from launcher.runs.find import LAST, run_dirs, submitted_at

    given = [before[i + 1] for i, word in enumerate(before[:-1]) if word == OUTPUT_DIR]
    runs = sorted(run_dirs(Path(given[-1] if given else "runs")), key=submitted_at, reverse=True)
    return [LAST, *(run.name for run in runs[:MOST_RUNS])]


def _overrides(word: str) -> Iterable[str]:
    """Presets, ``layout=gpu`` or ``+cluster=slurm``, and settings, ``trainer.lr=``."""
    from launcher.config.schema import Config, SlurmClusterConfig

    for group in sorted(path for path in conf_dir().iterdir() if path.is_dir()):
        name = "+cluster" if group.name == "cluster" else group.name
        if "=" in word:
            yield from (f"{name}={path.stem} " for path in sorted(group.glob("*.yaml")) if path.stem != "base")
        else:
            yield f"{name}="
    if "." in word or not word:
        yield from _settings(Config(), "")
        yield from _settings(SlurmClusterConfig(), "cluster.")


def _settings(config: Any, prefix: str) -> Iterable[str]:
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _settings(value, f"{prefix}{field.name}.")
        elif not field.name.startswith("_"):
            yield f"{prefix}{field.name}="

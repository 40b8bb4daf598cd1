"""``launcher completion bash|zsh|fish``: what a shell needs to complete commands, runs, presets and settings."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from launcher.cli.commands import COMMANDS, Command
from launcher.cli.parser import CommandParser
from launcher.common.errors import LauncherError
from launcher.common.paths import conf_dir

SCRIPTS = {
    # bash takes `=` and `:` as the end of a word; what stands before it must not be repeated.
    "bash": """\
_launcher() {
    local IFS=$'\\n'
    COMPREPLY=($("$1" completion bash --line "${COMP_LINE:0:$COMP_POINT}" 2>/dev/null))
}
complete -o nospace -F _launcher launcher""",
    # zsh would put a space at the end in quotes, so it is to add it itself.
    "zsh": """\
_launcher() {
    local -a found
    found=("${(@f)$("${words[1]}" completion zsh --line "${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
    compadd -Q -S '' -- ${found:#* }
    compadd -Q -- ${${(M)found:#* }% }
}
compdef _launcher launcher""",
    # fish adds a space by itself, but not after `=` or a dot.
    "fish": """\
function _launcher
    set -l program (commandline -opc)[1]
    $program completion fish --line (commandline -cp) 2>/dev/null | string trim --right
end
complete -c launcher -f -a '(_launcher)'""",
}


def main(arguments: Sequence[str]) -> int:
    """Prints the script, or, when the script asks, the candidates."""
    parser = CommandParser(
        "completion",
        "Prints the completion script of a shell: commands, their options, names of runs and sweeps, presets of the"
        " configuration, settings and their values.",
        examples=['eval "$(launcher completion bash)"', "launcher completion fish | source"],
    )
    parser.add_argument("shell", choices=sorted(SCRIPTS))
    parser.add_argument("--line", help="the line so far; prints what may follow (the scripts call it like this)")
    options = parser.parse_args(arguments)
    if options.line is None:
        print(SCRIPTS[options.shell])
        return 0
    from launcher.cli.completion import candidates

    word = "" if options.line.endswith(" ") else options.line.split()[-1]
    known = max(word.rfind("="), word.rfind(":")) + 1 if options.shell == "bash" else 0
    for candidate in candidates(options.line):
        print(candidate[known:])
    return 0


OUTPUT_DIR = "--output-dir"
MOST_RUNS = 100
_OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
_RUN_OPTIONS = ("-m ", "--multirun ", "--json ", "--cfg ", "--config-dir ", "--help ")
"""Of a run or a sweep, as Hydra knows them."""


def candidates(line: str) -> list[str]:
    """What may follow on ``line``; a word that is finished ends with a space."""
    words = line.split()[1:] + ([""] if line.endswith(" ") else [])
    if not words:
        return []
    *before, word = words
    command = COMMANDS.get(before[0]) if before else None
    if not before and "=" not in word and not word.startswith("-"):
        found: Iterable[str] = [*(f"{name} " for name in COMMANDS), *_overrides(before, word)]
    elif command is None:
        found = _RUN_OPTIONS if word.startswith("-") else _overrides(before, word)
    else:
        found = _of_command(command, before[1:], word)
    return list(dict.fromkeys(candidate for candidate in found if candidate.startswith(word)))


def _of_command(command: Command, before: Sequence[str], word: str) -> Iterable[str]:
    if word.startswith("-") or (before and before[-1].startswith("-")):
        text = _help(command)
        choices = re.search(rf"{re.escape(before[-1])} \{{([^}}]+)\}}", text) if before else None
        if choices:
            return [f"{choice} " for choice in choices.group(1).split(",")]
        if word.startswith("-"):
            return [f"{option} " for option in sorted(set(_OPTION.findall(text)))]
    positional = [name for name in before if not name.startswith("-")]
    first, _, rest = command.usage.partition(" ")
    actions = [name for name in first.strip("[]").split("|") if name.islower() and name != "overrides"]
    if actions and not positional:
        return [f"{name} " for name in actions]
    names = _names(first if not actions else rest, before) if "=" not in word else []
    if "overrides" in command.usage and ("RUN" not in command.usage or positional):
        return [*names, *_overrides(before, word)] if "RUN" not in command.usage else _overrides(before, word)
    return names


def _names(usage: str, before: Sequence[str]) -> list[str]:
    """Runs and sweeps, as far as the command takes them."""
    given = [before[i + 1] for i, word in enumerate(before[:-1]) if word == OUTPUT_DIR]
    output_dir = Path(given[-1] if given else "runs")
    found = []
    if "RUN" in usage:
        from launcher.observe.find import LAST, run_dirs, submitted_at

        runs = sorted(run_dirs(output_dir), key=submitted_at, reverse=True)
        found += [LAST, *(run.name for run in runs[:MOST_RUNS])]
    if "DIR" in usage:
        from launcher.sweep import SWEEPS

        found += [str(path) for path in sorted((output_dir / SWEEPS).glob("*/"))]
    return [f"{name} " for name in found]


def _help(command: Command) -> str:
    """A command's own help."""
    text = io.StringIO()
    # argparse ends the program behind its help.
    with redirect_stdout(text), suppress(SystemExit, LauncherError):
        command.load()(["--help"])
    return text.getvalue().partition("\nexamples:")[0]


def _overrides(before: Sequence[str], word: str) -> Iterable[str]:
    """Presets, ``layout=gpu`` or ``+cluster=slurm``, and settings, ``trainer.lr=`` and their values."""
    key, equals, _ = word.partition("=")
    for group in sorted(path for path in conf_dir().iterdir() if path.is_dir()):
        name = "+cluster" if group.name == "cluster" else group.name
        if equals and key == name:
            yield from (f"{name}={path.stem} " for path in sorted(group.glob("*.yaml")))
            return
        if not equals:
            yield f"{name}="
    if equals:
        yield from (f"{key}={value} " for value in _values(before, key))
    else:
        yield from _settings(word)


def _settings(word: str) -> Iterable[str]:
    """Of a group without its dot only that it has settings: there are many."""
    from launcher.config.overrides import setting_paths
    from launcher.config.schema import Config, SlurmClusterConfig

    on_slurm = setting_paths(SlurmClusterConfig(), "cluster.", groups=False)
    every = sorted({*setting_paths(Config(), groups=False), *on_slurm})
    group, dot, _ = word.rpartition(".")
    above = f"{group}{dot}"
    for path in every:
        inside, deeper, _ = path.removeprefix(above).partition(".")
        if path.startswith(above):
            yield f"{above}{inside}." if deeper else f"{path}="


def _values(before: Sequence[str], path: str) -> list[str]:
    """Those that a setting may have, if they are few; otherwise the one that it has after the words before it."""
    from launcher.submit.rules.values import WORDS

    path = path.lstrip("+~")
    if path in WORDS:
        return list(WORDS[path])
    now = _composed(before)
    for name in path.split("."):
        now = now.get(name) if isinstance(now, dict) else getattr(now, name, None)
    if isinstance(now, bool):
        return ["true", "false"]
    return [str(now)] if isinstance(now, int | float) or (isinstance(now, str) and now.isprintable()) else []


def _composed(before: Sequence[str]) -> Any:
    """The configuration of a line that is not finished; the default one where it is wrong so far."""
    from launcher.config.compose import compose
    from launcher.config.explain import COMPOSITION_ERRORS

    words = [word for word in before if "=" in word and not word.startswith("-")]
    with suppress(*COMPOSITION_ERRORS, LauncherError):
        return compose(words)
    return compose()

"""The command line: ``launcher [overrides]`` runs, ``launcher COMMAND ...`` does the rest.

python -m launcher
python -m launcher +cluster=slurm experiment=qwen3_8b model.path=/models/Qwen3-8B
python -m launcher plan layout.nodes=8 --json
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from launcher.cli.commands import COMMANDS, OLD_NAMES, show_help, show_version
from launcher.common.errors import LauncherError, UsageError
from launcher.common.startup import collect_garbage_less, escape_unprintable, is_text, use_utf8

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; an expected failure is one message on stderr."""
    if argv is None:
        # The process is ours.
        use_utf8()
        escape_unprintable()
        collect_garbage_less()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _check_text(arguments)
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
        # `launcher plan | head` closes the pipe. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _check_text(arguments: Sequence[str]) -> None:
    for number, word in enumerate(arguments, 1):
        if not is_text(word):
            raise UsageError(f"Argument {number} ({word!a}) is not UTF-8 text. HINT: set the terminal to UTF-8.")


def _dispatch(arguments: Sequence[str]) -> int:
    first = arguments[0] if arguments else ""
    if first in ("--help", "-h", "help", "--version"):
        return show_version() if first == "--version" else show_help()
    if first in OLD_NAMES:
        print(f"launcher: `launcher {first}` is now called `launcher {OLD_NAMES[first]}`", file=sys.stderr)
        first = OLD_NAMES[first]
    # Words that are no command are the overrides of a run.
    command, rest = (COMMANDS[first], arguments[1:]) if first in COMMANDS else (COMMANDS["submit"], arguments)
    main_of = command.load()
    try:
        return main_of(rest)
    except SystemExit as end:
        # argparse's way to end after `--help`.
        if end.code in (0, None):
            return 0
        raise

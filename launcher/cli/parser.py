"""The argument parser that all commands share: help with an example and exit codes, mistakes as one message."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from typing import NoReturn

from launcher.common.errors import USAGE_ERROR, UsageError

SUCCESS = {0: "done"}
USAGE = {USAGE_ERROR: "the command line, or the configuration, is wrong"}


class CommandParser(argparse.ArgumentParser):
    """Parses the words after a command.

    Args:
        name: the command.
        description: one or two sentences on what it does.
        examples: command lines that a person may copy.
        exit_codes: what each code means, beside 0 and 2, which every command has.
    """

    def __init__(
        self,
        name: str,
        description: str,
        *,
        examples: Sequence[str],
        exit_codes: Mapping[int, str] | None = None,
    ) -> None:
        codes = dict(sorted({**SUCCESS, **USAGE, **(exit_codes or {})}.items()))
        epilog = ["examples:", *(f"  {example}" for example in examples), "", "exit codes:"]
        epilog += [f"  {code:<4}{meaning}" for code, meaning in codes.items()]
        super().__init__(
            prog=f"launcher {name}",
            description=textwrap.fill(description, 100),
            epilog="\n".join(epilog),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """One message, as for every other mistake."""
        raise UsageError(f"{self.prog}: {message}. HINT: `{self.prog} --help` shows how it is used.")

    def add_json(self, what: str) -> None:
        """Adds ``--json``."""
        self.add_argument("--json", action="store_true", help=f"print {what} as JSON")

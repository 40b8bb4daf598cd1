"""The argument parser that all commands share: help with an example and exit codes, mistakes as one message."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from launcher.common.errors import USAGE_ERROR, UsageError

if TYPE_CHECKING:
    from launcher.config.schema import Config

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

    def add_overrides(self, help_text: str = "as for a run") -> None:
        """Adds ``overrides`` and ``--config-dir``, which :func:`compose_and_check` reads."""
        self.add_argument("overrides", nargs="*", help=help_text)
        self.add_argument("--config-dir", "-cd", type=Path, help="directory of further presets")


def compose_and_check(options: argparse.Namespace) -> Config:
    """The configuration of the overrides. The model may be missing: a run may be planned on a laptop, for a model that
    only the cluster has.

    Raises:
        LauncherError: it cannot be composed, or is wrong.
    """
    from launcher.config import compose
    from launcher.submit.composing import explained
    from launcher.submit.validate import check

    with explained():
        config = compose(options.overrides, options.config_dir)
    check(config, model_is_here=False)
    return config

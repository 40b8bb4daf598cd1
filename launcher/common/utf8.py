"""Text is UTF-8, whatever the locale: of arguments, file names, variables, standard streams and files."""

from __future__ import annotations

import os
import sys


def use_utf8() -> None:
    """Starts this process anew in Python's UTF-8 mode if its locale has another encoding, as ``LC_ALL=C`` has.

    Call it first in ``main``: nothing but imports may have happened. The mode is an argument of the interpreter, not a
    variable, so that the programs started by this one have the environment that the person gave them.
    """
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def escape_unprintable() -> None:
    """Lets standard output show what its encoding lacks as ``\\xe9``, as standard error does, instead of failing."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def is_text(word: str) -> bool:
    """False for what was made of bytes that are no UTF-8."""
    return not any("\ud800" <= char <= "\udfff" for char in word)

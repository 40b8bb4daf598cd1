"""What each program does first: UTF-8 whatever the locale, less garbage collection in short commands, logging."""

from __future__ import annotations

import atexit
import gc
import logging
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


ALLOCATIONS = 150_000
"""New objects that Python looks for garbage after. To import Hydra and to compose makes about 80,000 that all stay, and
with Python's own 700 a seventh of the time goes into finding that out. A program that goes on is still collected."""


def collect_garbage_less() -> None:
    """Fewer collections while this process runs, and none of what is left when it ends: that goes with the process."""
    gc.set_threshold(ALLOCATIONS)
    atexit.register(gc.freeze)


def configure_logging(who: str, *, level: int = logging.INFO) -> None:
    """Sends log lines to standard error, each with the time and its sender: ``[inference 1 gpu-07]``."""
    logging.basicConfig(
        level=level,
        stream=sys.stderr,
        format=f"%(asctime)s %(levelname)s [{who}] %(message)s",
        force=True,
    )

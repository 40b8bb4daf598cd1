"""Logging of the launcher's own processes, configured once, by the program's entry point."""

from __future__ import annotations

import logging
import sys


def configure(who: str, *, level: int = logging.INFO) -> None:
    """Sends log lines to standard error, each with the time and who speaks: ``[inference 1 gpu-07]``."""
    logging.basicConfig(
        level=level,
        stream=sys.stderr,
        format=f"%(asctime)s %(levelname)s [{who}] %(message)s",
        force=True,
    )

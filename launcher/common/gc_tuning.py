"""Python's garbage collector, kept out of the way of commands that run for half a second."""

from __future__ import annotations

import atexit
import gc

ALLOCATIONS = 150_000
"""New objects that Python looks for garbage after. To import Hydra and to compose makes about 80,000 that all stay, and
with Python's own 700 a seventh of the time goes into finding that out. A program that goes on is still collected."""


def spare() -> None:
    """Fewer collections while this process runs, and none of what is left when it ends: that goes with the process."""
    gc.set_threshold(ALLOCATIONS)
    atexit.register(gc.freeze)

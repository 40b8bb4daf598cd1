"""Reads one field of an event; what is missing or of another type is None."""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping
from typing import Any


def number(value: object) -> float | None:
    """A number that is no truth value."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None  # type: ignore[arg-type]


def integer(value: object) -> int | None:
    """A whole number; fractions are cut off."""
    found = number(value)
    return None if found is None or not math.isfinite(found) else int(found)


def integers(value: object) -> list[int]:
    """The whole numbers in a list."""
    return [found for item in value if (found := integer(item)) is not None] if isinstance(value, list) else []


def text(value: object) -> str | None:
    """Anything, as text."""
    return None if value is None else str(value)


def signal_of(event: Mapping[str, Any]) -> int | None:
    """The signal that ended a process, by name, by number, or as Popen says it."""
    value = event.get("signal")
    if isinstance(value, str) and value in signal.Signals.__members__:
        return int(signal.Signals[value])
    exit_code = integer(event.get("exit_code"))
    # Popen's way of saying that a signal ended the process.
    return -exit_code if exit_code is not None and exit_code < 0 else integer(value)

"""SLURM's ways to write a point in time and a time limit."""

from __future__ import annotations

import time

NO_LIMIT = frozenset({"UNLIMITED", "INFINITE"})
"""Words for a time limit that is none."""


def parse_timestamp(text: str) -> float | None:
    """Unix seconds of ``2026-11-26T22:10:31`` (local time); None for ``N/A``, ``Unknown`` and the like."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def parse_limit(text: str) -> int | None:
    """The seconds of a time limit; None if it is none of SLURM's forms, or one of :data:`NO_LIMIT`.

    ``minutes``, ``minutes:seconds``, ``hours:minutes:seconds``, ``days-hours``, ``days-hours:minutes`` and
    ``days-hours:minutes:seconds``.
    """
    days, dash, clock = text.rpartition("-")
    fields = clock.split(":")
    if not all(field.isdecimal() for field in (*fields, days or "0")) or len(fields) > 3:
        return None
    numbers = [int(field) for field in fields]
    if dash:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds

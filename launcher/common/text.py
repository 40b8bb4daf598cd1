"""How times, numbers, names and small curves are written for a person."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from itertools import pairwise

SPARKS = "▁▂▃▄▅▆▇█"
SPARKS_ASCII = "_.-=+*#@"


def command_line(*words: object) -> str:
    """``launcher status 'my runs/a'``: a command that can be pasted into a shell."""
    return shlex.join(["launcher", *map(str, words)])


def duration(seconds: float) -> str:
    """``0.12 s``, ``41.0 s``, ``2 min 14 s``, ``1 h 02 min``."""
    seconds = max(seconds, 0.0)
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def age(seconds: float) -> str:
    """``42 s``, ``14 min``, ``3 h``, ``5 days``: how long ago, for a column."""
    seconds = max(seconds, 0.0)
    for limit, unit, name in ((99, 1, "s"), (99 * 60, 60, "min"), (72 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} days"


def aligned(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Rows as lines with columns two spaces apart; those whose index is in ``right`` end at the same place."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def clock(seconds: float) -> str:
    """``0:42``, ``12:05``, ``1:02:05``: for a figure that ticks."""
    minutes, rest = divmod(int(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def number(value: float) -> str:
    """Three significant digits; thousands are grouped."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def size(count: float) -> str:
    """``1.2 GB``, ``340 kB``; thousands are decimal."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """``1 node``, ``2 nodes``."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def listed(names: Iterable[str]) -> str:
    """Names with runs of consecutive numbers folded: ``trainer-0000..0007, inference-1``."""
    runs: list[list[str]] = []
    for name in sorted(set(names), key=by_number):
        if runs and _follows(runs[-1][-1], name):
            runs[-1].append(name)
        else:
            runs.append([name])
    parts = []
    for run in runs:
        if len(run) > 2:
            parts.append(f"{run[0]}..{run[-1].rpartition('-')[2]}")
        else:
            parts.extend(run)
    return ", ".join(parts)


def by_number(name: str) -> tuple[str, int, str]:
    """Sort key that puts ``inference-2`` before ``inference-12``."""
    stem, _, tail = name.rpartition("-")
    return (stem, int(tail), name) if stem and tail.isdecimal() else (name, -1, name)


def sparkline(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """A curve at most ``width`` characters wide, from the least value to the greatest; each character is a mean."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite or width < 1:
        return ""
    columns = min(width, len(finite))
    edges = [round(i * len(finite) / columns) for i in range(columns + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    marks = SPARKS_ASCII if ascii_only else SPARKS
    scale = (len(marks) - 1) / (high - low) if high > low else 0.0
    return "".join(marks[round((mean - low) * scale)] for mean in means)


def _follows(name: str, after: str) -> bool:
    stem, index, _ = by_number(name)
    next_stem, next_index, _ = by_number(after)
    return index >= 0 and stem == next_stem and next_index == index + 1

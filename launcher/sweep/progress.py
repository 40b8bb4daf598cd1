"""What one run has got to: its steps, its metric and its end, from the event log alone.

Lighter than :class:`launcher.events.run_state.RunState`, because a sweep reads a thousand logs to show one table, and
for any
number that a trainer reports, not only for those that a display knows.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.metric import Metric
from launcher.events.reader import attempts, events_path

_WANTED = (b'"step"', b'"finished"', b'"submitted"', b'"attempt"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The events of a run, as far as a sweep wants to know them."""

    has_started: bool = False
    job_id: str | None = None
    """As the job itself wrote it."""
    outcome: str | None = None
    """``completed``, ``failed``, ``cancelled``, or whatever its last event calls its end."""
    seconds: float | None = None
    steps: int = 0
    planned: int | None = None
    curve: tuple[tuple[int, float], ...] = ()
    """The metric by step."""


def read_progress(run_dir: Path, metric: Metric) -> Progress:
    """Everything written so far, of all attempts; steps that were done again count once."""
    curve: list[tuple[int, float]] = []
    facts: dict[str, Any] = {}
    numbers = attempts(run_dir)
    for number in numbers:
        facts.pop("outcome", None)
        for event in _events(events_path(run_dir, number)):
            match event.get("event"):
                case "submitted":
                    facts["job_id"] = event.get("job_id")
                case "finished":
                    facts |= {"outcome": event.get("outcome", "completed"), "seconds": event.get("seconds")}
                case "step":
                    _add_step(event, metric.name, curve, facts)
    return Progress(has_started=bool(numbers), curve=tuple(curve), **facts)


def _events(path: Path) -> list[dict[str, Any]]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for line in data.split(b"\n"):
        if any(word in line for word in _WANTED):
            try:
                event = json.loads(line)
            except ValueError:
                continue  # still being written, or its writer died over it
            if isinstance(event, dict):
                found.append(event)
    return found


def _add_step(event: dict[str, Any], name: str, curve: list[tuple[int, float]], facts: dict[str, Any]) -> None:
    step, value, planned = event.get("step"), event.get(name), event.get("steps")
    if not isinstance(step, int):
        return
    facts["steps"] = step
    if isinstance(planned, int):
        facts["planned"] = planned
    while curve and curve[-1][0] >= step:
        curve.pop()
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        curve.append((step, float(value)))

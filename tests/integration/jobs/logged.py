"""Reading a run's event log in a test; a question about a field that no event has is an error, not an empty answer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

from launcher.events.schema import EVENT_KINDS


def read_events(attempt_dir: Path) -> list[dict[str, Any]]:
    """The events of an attempt so far; a line that is still being written is left out."""
    path = attempt_dir / "events.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def select(events: Iterable[dict[str, Any]], event: str, **fields: Any) -> list[dict[str, Any]]:
    """The events of a kind that have these values.

    Raises:
        AssertionError: no event of this kind has such a field.
    """
    unknown = fields.keys() - {field.name for field in fields_of(EVENT_KINDS[event])}
    assert not unknown, f"{event} has no field {sorted(unknown)}"
    wanted = {"event": event, **fields}.items()
    return [found for found in events if wanted <= found.items()]

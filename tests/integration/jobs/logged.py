"""Reading a run's event log in a test; a question about a field that no event has is an error, not an empty answer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.unit.event_fields import check_fields


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
    check_fields(event, fields)
    wanted = {"event": event, **fields}.items()
    return [found for found in events if wanted <= found.items()]

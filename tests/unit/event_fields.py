"""A test's own events have the fields that the schema defines, so that none is about an event that nothing writes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields as fields_of

from launcher.events.schema import EVENT_KINDS


def check_fields(event: str, fields: Iterable[str], *, free: frozenset[str] = frozenset({"step"})) -> None:
    """Refuses fields that events of a kind don't have.

    Args:
        free: kinds that carry figures of a trainer's own.

    Raises:
        AssertionError: there are such fields.
    """
    unknown = set(fields) - {field.name for field in fields_of(EVENT_KINDS[event])}
    assert event in free or not unknown, f"{event} has no field {sorted(unknown)}"

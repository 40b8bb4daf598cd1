"""What an update consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor on the wire."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """torch's name without the module: ``bfloat16``."""

    alias_of: str | None = None
    """Its bytes are those of this earlier entry and do not travel."""


Manifest = tuple[Entry, ...]


def to_json(manifest: Manifest) -> list[dict[str, Any]]:
    """JSON form of a manifest."""
    return [asdict(entry) for entry in manifest]


def from_json(entries: Sequence[dict[str, Any]]) -> Manifest:
    """The manifest of its JSON form.

    Raises:
        KeyError, TypeError: it is not one.
    """
    return tuple(
        Entry(
            name=str(entry["name"]),
            shape=tuple(int(size) for size in entry["shape"]),
            dtype=str(entry["dtype"]),
            alias_of=entry.get("alias_of"),
        )
        for entry in entries
    )

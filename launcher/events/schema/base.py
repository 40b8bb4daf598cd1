"""What all events have in common, and the table of their kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast, dataclass_transform


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The fields of all kinds."""

    time: float = 0.0
    """When node 0 wrote the event, in unix seconds by its clock; set by the writer of the log."""

    extra: dict[str, Any] = field(default_factory=dict)
    """Fields that the kind doesn't define: a trainer's own figures, or what a newer version writes. They stand beside
    the other fields in the line."""

    @property
    def event_name(self) -> str:
        """The value of ``event`` in the log."""
        return _NAMES[type(self)]


EVENT_KINDS: dict[str, type[Event]] = {}
"""Class by the value of ``event``."""

_NAMES: dict[type[Event], str] = {}
_Class = TypeVar("_Class", bound=type[Event])


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
def event_kind(name: str) -> Callable[[_Class], _Class]:
    """Makes a class a frozen dataclass, and registers it as the kind that is called ``name`` in the log."""

    def register(cls: _Class) -> _Class:
        kind = cast(_Class, dataclass(frozen=True, slots=True, kw_only=True)(cls))
        EVENT_KINDS[name] = kind
        _NAMES[kind] = name
        return kind

    return register


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownEvent(Event):
    """An event of a kind that this version doesn't know, or without a field that its kind requires."""

    kind_name: str
    """The value of ``event``; all other fields are in ``extra``."""

    @property
    def event_name(self) -> str:
        """The value of ``event`` in the log."""
        return self.kind_name

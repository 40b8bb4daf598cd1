"""Events to and from what JSON can hold; reads what older and newer versions wrote."""

from __future__ import annotations

import dataclasses
import functools
import signal
from collections.abc import Mapping
from typing import Any, get_type_hints

from launcher.common.codec import CodecError, from_builtins, to_builtins
from launcher.events.schema import EVENT_KINDS, Event, UnknownEvent

RENAMED: dict[str, dict[str, str]] = {
    "process": {"start": "restart_count"},
    "engine_ready": {"generation": "restart_count"},
    "restart": {"restart": "counted_restarts", "restart_count": "counted_restarts", "of": "max_restarts"},
    "spare": {"takes": "slot"},
}
"""Fields that earlier versions wrote under another name: by kind, old name -> new name."""


def event_to_dict(event: Event) -> dict[str, Any]:
    """The event as one JSON object; fields that are None are left out."""
    return {"time": event.time, "event": event.event_name, **event_fields(event)}


def event_fields(event: Event) -> dict[str, Any]:
    """The fields of the event without its time; those that are None are left out."""
    fields = to_builtins(event)
    extra = fields.pop("extra")
    for name in ("time", "kind_name"):
        fields.pop(name, None)
    return {**{name: value for name, value in fields.items() if value is not None}, **extra}


def event_from_dict(data: Mapping[str, Any]) -> Event | None:
    """The event of a JSON object; None if it has no time.

    A field of another type than its kind says counts as missing. Without a field that its kind requires, and for a kind
    that isn't known, the result is an :class:`UnknownEvent`.
    """
    name, time = str(data.get("event")), data.get("time")
    if not isinstance(time, int | float) or isinstance(time, bool):
        return None
    return make_event(name, data, float(time))


def make_event(name: str, fields: Mapping[str, Any], time: float = 0.0) -> Event:
    """An event from its name and its fields; see :func:`event_from_dict`."""
    fields = {key: value for key, value in fields.items() if key not in ("event", "time")}
    kind = EVENT_KINDS.get(name)
    if kind is None:
        return UnknownEvent(time=time, kind_name=name, extra=fields)
    types = _field_types(name)
    values = _upgraded(name, fields)
    known = {key: value for key, value in values.items() if key in types}
    extra = {key: value for key, value in values.items() if key not in types}
    try:
        return from_builtins({**known, "time": time, "extra": extra}, kind)
    except CodecError:
        fitting = {key: fit for key, value in known.items() if (fit := _fitting(value, types[key])) is not None}
    try:
        return from_builtins({**fitting, "time": time, "extra": extra}, kind)
    except CodecError:
        return UnknownEvent(time=time, kind_name=name, extra=fields)


def _upgraded(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as this version calls them."""
    renamed = RENAMED.get(name, {})
    values = {renamed.get(key, key): value for key, value in fields.items()}
    if name == "failure":
        if isinstance(values.get("tail"), str):
            values["tail"] = values["tail"].splitlines()
        by_signal = values.pop("signal", None)
        if isinstance(by_signal, str):
            by_signal = signal.Signals.__members__.get(by_signal)
        if isinstance(by_signal, int) and values.get("exit_code") is None:
            values["exit_code"] = -int(by_signal)
    return values


def _fitting(value: Any, kind: Any) -> Any:
    """The value as its type; None if it is of another one. A whole number may have been written as a fraction."""
    candidates = (value, int(value)) if isinstance(value, float) and value.is_integer() else (value,)
    for candidate in candidates:
        try:
            return from_builtins(candidate, kind)
        except CodecError:
            pass
    return None


@functools.cache
def _field_types(name: str) -> dict[str, Any]:
    kind = EVENT_KINDS[name]
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.name not in ("time", "extra")}

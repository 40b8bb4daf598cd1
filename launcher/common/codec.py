"""Dataclasses to and from what JSON can hold: the one codec of every message and every record.

Field types are checked when reading: a missing field, a field of another type or a value outside of an enumeration is
a :class:`CodecError` that names the field. Unknown fields are ignored, so that a newer writer can be read.
"""

from __future__ import annotations

import numbers
import threading
from typing import Any, TypeVar

T = TypeVar("T")

_prepared: set[Any] = set()
_preparing = threading.Lock()


class CodecError(ValueError):
    """The data does not fit its type; the message names the field and what was found there."""


def to_builtins(value: Any) -> Any:
    """``value`` as dicts, lists, strings, numbers, booleans and None. Dataclasses become dicts of their fields."""
    import msgspec

    return msgspec.to_builtins(value)


def from_builtins(data: Any, kind: type[T]) -> T:
    """A ``kind`` from what :func:`to_builtins` returned, or from parsed JSON.

    Raises:
        CodecError: ``data`` does not fit ``kind``.
    """
    import msgspec

    _prepare(kind)
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise CodecError(f"{getattr(kind, '__name__', kind)}: {error}") from error


def to_json(value: Any) -> bytes:
    """``value`` as one line of JSON, UTF-8, without the newline. Numbers of numpy are written as Python's are; what is
    not finite becomes null.

    Raises:
        TypeError: ``value`` holds something that JSON has no form for.
    """
    import msgspec

    return bytes(msgspec.json.encode(value, enc_hook=_number))


def from_json(data: bytes | str, kind: type[T]) -> T:
    """A ``kind`` from JSON.

    Raises:
        CodecError: it is not JSON, or does not fit ``kind``.
    """
    import msgspec

    _prepare(kind)
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:  # a ValidationError is one, too
        raise CodecError(f"{getattr(kind, '__name__', kind)}: {error}") from error


def _prepare(kind: Any) -> None:
    """Lets msgspec read the fields of a dataclass, and of those inside it, in one thread.

    It puts what it has read where other threads find it before it is complete, and they crash.
    """
    import msgspec

    if kind not in _prepared:
        with _preparing:
            msgspec.json.Decoder(kind)
            _prepared.add(kind)


def _number(value: Any) -> int | float:
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")

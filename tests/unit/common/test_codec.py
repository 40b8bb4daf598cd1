"""The codec of messages and records."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from launcher.common.codec import CodecError, from_json, to_json


@dataclass(frozen=True, kw_only=True)
class Point:
    x: int
    y: float = 0.0


def test_numbers_of_numpy_are_numbers() -> None:
    message = {"a": np.float64(1.5), "b": np.float32(0.25), "c": np.int64(3), "d": float("nan")}
    assert json.loads(to_json(message)) == {"a": 1.5, "b": 0.25, "c": 3, "d": None}


def test_what_json_has_no_form_for_is_an_error() -> None:
    with pytest.raises(TypeError, match="a object cannot be written as JSON"):
        to_json({"a": object()})


def test_what_is_read_fits_its_type_or_is_an_error_that_names_the_field() -> None:
    assert from_json(b'{"x": 1, "y": 2, "later": true}', Point) == Point(x=1, y=2.0)
    with pytest.raises(CodecError, match=r"Point: .*\$\.x"):
        from_json(b'{"x": "1"}', Point)
    with pytest.raises(CodecError, match=r"Point: .*`x`"):
        from_json(b"{}", Point)
    with pytest.raises(CodecError):
        from_json(b"GET / HTTP/1.1", Point)

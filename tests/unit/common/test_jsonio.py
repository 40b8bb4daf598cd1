"""Files of text and JSON, and the codec of messages and records."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pytest

from launcher.common import codec, jsonio


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    ranks: tuple[int, ...]
    colour: Colour = Colour.RED


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str
    inner: Inner | None = None
    seconds: float = 0.0


def test_a_nested_dataclass_survives_the_way_through_json() -> None:
    value = Outer(name="ä", inner=Inner(ranks=(1, 2)), seconds=1.5)
    assert codec.from_json(codec.to_json(value), Outer) == value
    assert codec.from_builtins(codec.to_builtins(value), Outer) == value


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "Outer"),
        ('{"seconds": 1}', "name"),
        ('{"name": 3}', "name"),
        ('{"name": "a", "inner": {"ranks": ["x"]}}', "ranks"),
        ('{"name": "a", "inner": {"ranks": [], "colour": "blue"}}', "colour"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_name_of_the_field(text: str, named: str) -> None:
    with pytest.raises(codec.CodecError, match=named):
        codec.from_json(text, Outer)


def test_an_unknown_field_of_a_newer_writer_is_ignored() -> None:
    assert codec.from_json('{"name": "a", "later": 1}', Outer) == Outer(name="a")


def test_files_are_utf_8_and_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert jsonio.read_json(path) is None
    jsonio.write_json(path, {"note": "é"})
    assert path.read_bytes() == '{"note": "é"}\n'.encode()
    assert jsonio.read_json(path) == {"note": "é"}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_line_that_is_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert list(jsonio.read_lines(path)) == []
    jsonio.append_line(path, {"n": 1})
    jsonio.append_line(path, {"n": 2})
    path.write_bytes(path.read_bytes() + b'{"n": ')
    assert list(jsonio.read_lines(path)) == [{"n": 1}, {"n": 2}]


def test_the_end_of_a_file_begins_with_a_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\nthree\n")
    assert jsonio.tail(path, 100) == b"one\ntwo\nthree\n"
    assert jsonio.tail(path, 8) == b"three\n"

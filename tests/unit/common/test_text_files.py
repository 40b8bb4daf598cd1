"""Text files are UTF-8 whatever the locale: no file of the package is opened without an encoding."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import launcher

PACKAGE = Path(launcher.__file__).parent


def without_encoding(source: str) -> list[int]:
    """Lines that read or write a text file in the locale's encoding, also where a linter does not know the type."""
    return [
        call.lineno
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("read_text", "write_text")
        and len(call.args) == (call.func.attr == "write_text")
        and "encoding" not in {keyword.arg for keyword in call.keywords}
    ]


def test_every_text_file_has_an_encoding() -> None:
    found = {
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in PACKAGE.rglob("*.py")
        for line in without_encoding(path.read_text(encoding="utf-8"))
    }

    assert found == set()


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("a.read_text()", [1]),
        ("a.b().write_text(c)", [1]),
        ("a.read_text(encoding='utf-8')", []),
        ("a.read_text('utf-8')", []),
        ("\na.write_text(c, errors='replace')", [2]),
    ],
)
def test_what_is_found(source: str, lines: list[int]) -> None:
    assert without_encoding(source) == lines

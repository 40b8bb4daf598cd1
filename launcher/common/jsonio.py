"""Text and JSON files: written as a whole or not at all, appended line by line, read from their ends. Always UTF-8."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replaces ``path``: a reader sees the old content or all of the new one. The directory must exist."""
    # The process id keeps two writers apart; the leading dot keeps the draft out of listings.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def write_json(path: Path, value: Any) -> None:
    """As :func:`write_text`, with ``value`` as one line of JSON."""
    write_text(path, json.dumps(value, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in ``path``; None if there is no such file.

    Raises:
        json.JSONDecodeError: it holds something else.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def append_line(path: Path, value: Any) -> None:
    """Adds ``value`` as one line of JSON, in one write."""
    with path.open("ab") as file:
        file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")


def read_lines(path: Path) -> Iterator[Any]:
    """The values of a file of JSON lines; none if it does not exist. A last line that is cut off is left out."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    for line in data.splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield json.loads(line)


def tail(path: Path, limit: int) -> bytes:
    """The last ``limit`` bytes of a file, or all of a shorter one; from the beginning of a line where one was cut."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - limit))
        data = file.read(limit)
    return data if size <= limit else data[data.find(b"\n") + 1 :]

"""``launcher models``: which models an update was shown to bring into an engine, with which releases."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import launcher
from launcher.cli.parser import CommandParser
from launcher.common.text import aligned

UNKNOWN = 1
TABLE = Path(launcher.__file__).parent / "testing" / "models" / "table.json"
"""Written by ``python -m launcher.testing.models ... --out``."""

HEADER = ("model", "tensor parallel", "trainer", "engine", "result", "")


def main(arguments: Sequence[str]) -> int:
    """Prints the kept table."""
    parser = CommandParser(
        "models",
        "For which models an engine was equal, after two updates, to an engine started from the same weights: every"
        " tensor that its model reaches, and its answers. Try one of yours: python -m launcher.testing.models PATH.",
        examples=["launcher models", "launcher models gemma2 mixtral", "launcher models --json"],
        exit_codes={UNKNOWN: "no model of the table has that name"},
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
    parser.add_argument("--markdown", action="store_true", help="as the documentation has it")
    parser.add_json("the table")
    options = parser.parse_args(arguments)
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    rows = [row for row in table["rows"] if not options.names or row["name"] in options.names]
    if not rows:
        print(f"launcher models: no model of the table is called {options.names[0]!r}", file=sys.stderr)
        return UNKNOWN
    if options.json:
        print(json.dumps({**table, "rows": rows}, indent=2))
    elif options.markdown:
        print(markdown(table))
    else:
        print("\n".join(aligned([HEADER, *(_cells(row) for row in rows)])))
        print(f"\n{summary(table)}")
    return 0


def summary(table: dict[str, Any]) -> str:
    """When and with what the table was made."""
    releases = ", ".join(f"{package} {version}" for package, version in table["releases"].items())
    return f"{table['date']}, with {releases}"


def markdown(table: dict[str, Any]) -> str:
    """The table as a page shows it."""
    lines = ["| model | TP | trainer to engine | result |", "|---|---|---|---|"]
    for row in table["rows"]:
        words = f": {_first_sentence(row['words'])}" if row["words"] else ""
        types = f"{row['trainer_dtype']} to {row['dtype']}"
        lines.append(f"| {row['name']} | {row['tp']} | {types} | {row['result']}{words} |")
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        str(row["tp"]),
        row["trainer_dtype"],
        row["dtype"],
        row["result"],
        _first_sentence(row["words"]),
    )


def _first_sentence(words: str) -> str:
    return words.partition(" HINT:")[0].replace("|", "\\|")[:160]

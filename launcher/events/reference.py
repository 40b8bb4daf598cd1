"""Renders the page about all events: ``python -m launcher.events.reference > launcher/docs/events.md``."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Iterator

from launcher.events.failure_kinds import FailureKind
from launcher.events.schema import EVENT_KINDS, Event

INTRODUCTION = """\
# Events

Each attempt of a run has an event log, `attempts/N/events.jsonl` in the run directory: one JSON object a line, in the
order in which node 0 received them. `launcher status`, `launcher why`, the web page, the pictures and sweeps read
nothing else of a run. A program of your own can follow it, too: a line is complete once it ends with a newline.

This page is generated from `launcher/events/schema/` with `python -m launcher.events.reference`.

Every line has `event`, the name of its kind, and `time`, unix seconds by node 0's clock. Fields that are not known are
left out. A reader must ignore kinds and fields that it doesn't know. A trainer adds events with
`launcher.control.emit.emit`; every further number in a `step` can be the metric of a sweep.
"""


def render() -> str:
    """The page."""
    parts = [INTRODUCTION, "| event | meaning |\n|---|---|"]
    parts[-1] += "".join(f"\n| [`{name}`](#{name}) | {_first_sentence(kind)} |" for name, kind in EVENT_KINDS.items())
    parts += [_section(name, kind) for name, kind in EVENT_KINDS.items()]
    kinds = "\n".join(f"| `{kind.value}` | {kind.text} |" for kind in FailureKind)
    parts.append("## Kinds of failure\n\nThe values of `kind` in a `failure`.")
    parts.append(f"| kind | as `why` prints it |\n|---|---|\n{kinds}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _section(name: str, kind: type[Event]) -> str:
    rows = [f"| `{field}` | {text} | {meaning} |" for field, text, meaning in _fields(kind)]
    table = "\n\n| field | type | meaning |\n|---|---|---|\n" + "\n".join(rows) if rows else ""
    return f"## {name}\n\n{_plain(inspect.getdoc(kind) or '')}{table}"


def _fields(kind: type[Event]) -> Iterator[tuple[str, str, str]]:
    """Name, type and meaning of each field of the kind, with those of the classes that it extends."""
    for cls in reversed(kind.__mro__):
        if cls in (Event, object) or not dataclasses.is_dataclass(cls):
            continue
        body = ast.parse(inspect.getsource(cls)).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, [*body.body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                yield statement.target.id, _type(statement), _docstring(following).replace("|", "\\|")


def _type(statement: ast.AnnAssign) -> str:
    text = ast.unparse(statement.annotation).replace(" | None", "").replace("'", '"')
    if text.startswith("Literal["):
        return " or ".join(f"`{value.strip()}`" for value in text[len("Literal[") : -1].split(","))
    return text


def _docstring(statement: ast.stmt | None) -> str:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return _plain(inspect.cleandoc(str(statement.value.value)))
    return ""


def _first_sentence(kind: type[Event]) -> str:
    return _plain(inspect.getdoc(kind) or "").partition(". ")[0].rstrip(".")


def _plain(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


if __name__ == "__main__":
    print(render(), end="")

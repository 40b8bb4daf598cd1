"""The page of all settings, written from the schema.

``python -m launcher.config.reference > launcher/docs/configuration.md``
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_origin

from launcher.config import schema
from launcher.config.overrides import members
from launcher.config.renamed import RENAMED
from launcher.config.schema import COMMAND, Config, LocalClusterConfig, NodesConfig, SlurmClusterConfig

INTRODUCTION = """\
# Configuration

<!-- Written by `python -m launcher.config.reference` from `launcher/config/schema.py`: edit the docstrings there. -->

Every setting with its default. An override on the command line sets one: `launcher trainer.steps=10`. Presets
(`layout=gpu`) set several, and override these defaults; `launcher --cfg job` prints what a command line amounts to.

- **Text** stays as it is typed: `name=12e4` is not a number. Quotes are needed for what a shell or Hydra would take
  apart: `'name="a,b"'`; a comma outside of quotes makes a sweep of several values.
- **Tables that take any name** (below as `NAME`) need no plus sign: `cluster.sbatch.comment=rl`.
- **Commands** are a list, or text that is split as a shell would split it. These are the same:
  `'trainer.command=python train.py --lr=1e-3'` and `'trainer.command=[python,train.py,--lr=1e-3]'`. In a list, an item
  with a comma or brackets needs quotes: `"trainer.command=[python,train.py,'--tags=a,b']"`.
- **Null** leaves the choice to the launcher, to vLLM or to SLURM, as the text has it.
"""


def page() -> str:
    """The whole page, as Markdown."""
    parts = [INTRODUCTION, *_group("", Config, "Top level")]
    for field in fields(Config):
        kind = members(Config)[field.name].type
        if is_dataclass(kind) and field.name != "cluster":
            parts += _group(field.name, kind, f"`{field.name}`")
    parts += _group("cluster", LocalClusterConfig, "`cluster` on any machine")
    inherited = {field.name for field in fields(LocalClusterConfig)}
    parts += _group("cluster", SlurmClusterConfig, "`cluster` with `+cluster=slurm`", inherited)
    parts += _group("cluster.trainer", NodesConfig, "`cluster.trainer` and `cluster.inference`, with `+cluster=slurm`")
    parts += ["## Old names", "", "Accepted in this version only, with a warning.", "", "| old | new |", "|---|---|"]
    parts += [f"| `{old}` | `{new}` |" for old, new in RENAMED.items()]
    return "\n".join(parts) + "\n"


def _group(path: str, kind: Any, title: str, without: set[str] | None = None) -> Iterator[str]:
    texts = docstrings()
    yield f"## {title}"
    yield ""
    yield _markdown(inspect.getdoc(kind) or "")
    yield ""
    yield "| setting | default | |"
    yield "|---|---|---|"
    for field in fields(kind):
        hint = members(kind)[field.name].type
        if is_dataclass(hint) or field.name in (without or ()):
            continue
        full = f"{path}.{field.name}".lstrip(".")
        name = f"{full}.NAME" if get_origin(hint) is dict else full
        text = next(filter(None, (texts.get((owner.__name__, field.name)) for owner in kind.__mro__)), "")
        text += (
            " Text is split as a shell would."
            if field.metadata.get("syntax") == COMMAND and "shell" not in text
            else ""
        )
        yield f"| `{name}` | {_default(field)} | {_markdown(text)} |"
    yield ""


def docstrings() -> dict[tuple[str, str], str]:
    """The text under each field, by class and field."""
    found = {}
    for owner in ast.parse(inspect.getsource(schema)).body:
        if not isinstance(owner, ast.ClassDef):
            continue
        for above, below in zip(owner.body, owner.body[1:], strict=False):
            if (
                isinstance(above, ast.AnnAssign)
                and isinstance(above.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[owner.name, above.target.id] = inspect.cleandoc(str(below.value.value))
    return found


def _default(field: Field[Any]) -> str:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    return "" if value in ([], {}) else f"`{json.dumps(value) if not isinstance(value, str) else value}`"


def _markdown(text: str) -> str:
    """One line, with Markdown's backticks and without what would end a cell."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    return re.sub(r"\s+", " ", text).replace("|", r"\|")


if __name__ == "__main__":
    sys.stdout.write(page())

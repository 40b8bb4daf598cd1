"""The launcher's own environment variables: each is named and described once, and each that is described is used."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from launcher.common import env

ROOT = Path(__file__).parents[3]
NAME = re.compile(r"\bLAUNCHER_[A-Z][A-Z_]*[A-Z]\b")


def names_in(path: Path) -> set[str]:
    return set(NAME.findall(path.read_text(encoding="utf-8")))


def test_every_variable_is_described_in_one_line() -> None:
    body = ast.parse(Path(env.__file__).read_text(encoding="utf-8")).body[2:]
    described = {}
    for assignment, text in zip(body[::2], body[1::2], strict=True):
        assert isinstance(assignment, ast.Assign)
        assert isinstance(text, ast.Expr)
        assert isinstance(text.value, ast.Constant)
        (target,) = assignment.targets
        described[ast.unparse(target)] = str(text.value.value)
    assert list(described) == sorted(described)
    assert all(getattr(env, name) == name for name in described)
    assert not [name for name, text in described.items() if "\n" in text or len(text) < 10]


def test_no_other_variable_is_used_and_none_is_unused() -> None:
    files = [*(ROOT / "launcher").rglob("*.py"), *(ROOT / "sbatch_templates").iterdir()]
    used = set().union(*(names_in(path) for path in files if path != Path(env.__file__)))
    assert used == {name for name in vars(env) if name.startswith("LAUNCHER_")}

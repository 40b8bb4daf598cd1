"""Imports point one way: the contracts in ``pyproject.toml`` hold, and would not if an arrow were turned round."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow  # `.ci/check` runs lint-imports beside the fast tests.
LINT = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """Checks the contracts of a checkout."""
    command = [sys.executable, "-c", LINT, "--no-cache"]
    return subprocess.run(command, cwd=root, env={"PATH": ""}, capture_output=True, text=True, check=False)


def test_the_contracts_hold() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the package that a test may change."""
    shutil.copytree(ROOT / "launcher", tmp_path / "launcher", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("common/text.py", "launcher.cli"),  # upwards
        ("layout/model.py", "launcher.sweep"),  # upwards, over several floors
        ("bridge/plan/boxes.py", "launcher.layout"),  # out of the library
        ("node/agent.py", "vllm"),  # the engine's inside
    ],
)
def test_an_import_in_the_wrong_direction_is_found(checkout: Path, module: str, imported: str) -> None:
    path = checkout / "launcher" / module
    path.write_text(path.read_text(encoding="utf-8") + f"\nimport {imported}\n", encoding="utf-8")
    done = lint(checkout)
    importer = "launcher." + module.removesuffix(".py").replace("/", ".")
    assert done.returncode != 0
    assert f"{importer} -> {imported}" in done.stdout

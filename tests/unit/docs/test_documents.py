"""What the documents say without its being executed elsewhere: fragments call what exists, links lead somewhere."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.bridge import Bridge
from launcher.bridge.trainer.update import Update
from launcher.checkpoint import Checkpoints
from launcher.cli.commands import COMMANDS
from launcher.config.schema import Config, SlurmClusterConfig
from tests.unit.docs import environment
from tests.unit.documents import FILE, NOT_EXECUTED, ROOT, Document, commands, document, documents, files

LONGEST_README = 200
LANGUAGES = {"console", "python", "text", "mermaid", "jinja"}
WITH_OLD_NAMES = {"CHANGELOG.md", "launcher/docs/configuration.md"}
"""Documents that also name what was renamed."""

DOCUMENTS = [pytest.param(found, id=found.name) for found in documents()]

# What the fragments take as given: the program of the reader, and what a fragment further up has made.
GIVEN: dict[str, Any] = {
    "data": [],
    "step": 1,
    "steps": 1,
    "model": torch.nn.Module,
    "loader": object,
    "optimizer": torch.optim.Optimizer,
    "weights": Bridge,
}
MADE = {"bridge.connect": Bridge, "Checkpoints.of_run": Checkpoints, "weights.publish_async": Update}
"""What calls return, as the fragments use it."""


class Names(ast.NodeVisitor):
    """Follows an example's names through its imports and assignments, and notes each call that cannot be."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {**vars(builtins), **GIVEN}
        self.checked: list[str] = []

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = importlib.import_module(str(node.module))
        for name in node.names:
            found = getattr(module, name.name, None) or importlib.import_module(f"{node.module}.{name.name}")
            self.known[name.asname or name.name] = found
            self.checked.append(name.name)

    def visit_For(self, node: ast.For) -> None:
        self.visit(node.iter)
        self.known |= {name.id: object for name in ast.walk(node.target) if isinstance(name, ast.Name)}
        for statement in node.body:
            self.visit(statement)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        (target,) = node.targets
        assert isinstance(target, ast.Name)
        made = MADE.get(ast.unparse(node.value.func)) if isinstance(node.value, ast.Call) else None
        self.known[target.id] = made or self.known.get(target.id, object)

    def visit_Name(self, node: ast.Name) -> None:
        assert node.id in self.known, f"`{node.id}` comes from nowhere"

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        called = self.found(node.func)
        if getattr(called, "__module__", "").startswith("launcher."):
            # Unbound methods miss their first argument, which stands before the dot.
            unbound = inspect.isfunction(called) and "self" in inspect.signature(called).parameters
            before = [None] if unbound else []
            keywords = {str(keyword.arg): None for keyword in node.keywords}
            inspect.signature(called).bind(*before, *node.args, **keywords)
            self.checked.append(called.__qualname__)

    def found(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Attribute):
            return getattr(self.found(node.value), node.attr)
        assert isinstance(node, ast.Name)
        return self.known[node.id]


def fragments() -> list[str]:
    """The Python blocks that are no programs of their own."""
    return [block.text for found in documents() for block in found.blocks("python") if block.is_executed]


def test_fragments_import_and_call_what_exists() -> None:
    checked: set[str] = set()
    for fragment in fragments():
        names = Names()
        names.visit(ast.parse(fragment))
        checked |= {*names.checked}
    assert {"connect", "Bridge.publish", "Bridge.publish_async", "Bridge.guard", "Bridge.close"} <= checked
    assert {"should_stop", "Checkpoints.of_run", "Checkpoints.restore", "Checkpoints.save"} <= checked
    assert {"api_key", "inference_urls", "BridgeSettings"} <= checked


@pytest.mark.parametrize("wrong", ["weights.publich(model, version=1)", "weights.publish(model)", "bridge.connect()"])
def test_a_fragment_that_cannot_be_is_found(wrong: str) -> None:
    with pytest.raises((AttributeError, TypeError, AssertionError)):
        Names().visit(ast.parse(wrong))


def test_programs_are_as_clean_as_the_project(tmp_path: Path) -> None:
    programs = {name: text for name, text in files().items() if name.endswith(".py")}
    assert programs
    for name, text in programs.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    ruff = [
        str(Path(sys.executable).with_name("ruff")),
        "check",
        "--isolated",
        "--select",
        "E,F,W,B",
        "--line-length=120",
    ]
    done = subprocess.run([*ruff, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("found", DOCUMENTS)
def test_blocks_say_what_they_are(found: Document) -> None:
    for block in found.blocks():
        assert block.language in LANGUAGES, block.text
        is_known = block.note in ("", "run command", "test command") or block.note.startswith((FILE, NOT_EXECUTED))
        assert is_known, block.note
        assert block.note != NOT_EXECUTED.strip(), "say why"


@pytest.mark.parametrize("found", DOCUMENTS)
def test_links_lead_somewhere(found: Document) -> None:
    for link in found.links():
        path, _, anchor = link.partition("#")
        target = (found.path.parent / path).resolve() if path else found.path
        assert target.exists(), f"{found.name}: {link}"
        if anchor:
            other = document(str(target.relative_to(ROOT)))
            assert anchor in other.anchors(), f"{found.name}: {link}"


def leaf(path: str) -> bool:
    """Whether the schema has a setting, or an entry of a setting that is a dictionary."""
    at: list[Any] = [Config(), Config(cluster=SlurmClusterConfig())]
    for word in path.split("."):
        if any(isinstance(value, dict) for value in at):
            return True
        parts = [value for value in at if is_dataclass(value)]
        at = [getattr(part, word) for part in parts if word in {field.name for field in fields(part)}]
    return bool(at)


def test_settings_exist() -> None:
    groups = [field.name for field in fields(Config) if is_dataclass(getattr(Config(), field.name))]
    named = {(found.name, setting) for found in documents() for setting in found.named_settings(groups)}
    assert len(named) > 60
    assert sorted(n for n in named if not leaf(n[1]) and n[0] not in WITH_OLD_NAMES) == []
    assert not leaf("trainer.nothing") and not leaf("cluster.nothing.at.all")


def test_the_readme_shows_every_command_and_fits() -> None:
    shown = {words[1] for words in map(str.split, commands()) if words[0] == "launcher"}
    # `submit` is what overrides alone mean; `completion` stands in a command of the shell's.
    assert shown == COMMANDS.keys() - {"submit", "completion"}
    readme = document("README.md")
    assert [block.note for block in readme.blocks() if block.note] == ["run command", "test command"]
    assert len(readme.text.splitlines()) <= LONGEST_README


def test_every_page_is_in_the_index() -> None:
    index = document("launcher/docs/index.md")
    pages = {path.name for path in index.path.parent.glob("*.md")} - {"index.md"}
    assert pages == {link for link in index.links() if "/" not in link}


def test_the_table_of_variables_is_current() -> None:
    assert document("launcher/docs/environment.md").text == environment.page()


def test_every_variable_of_the_launcher_is_documented() -> None:
    sources = [*(ROOT / "launcher").rglob("*.py"), *(ROOT / "sbatch_templates").glob("*")]
    used = {name for path in sources for name in re.findall(r"\bLAUNCHER_[A-Z_]+\b", path.read_text(encoding="utf-8"))}
    assert used == environment.variables().keys()

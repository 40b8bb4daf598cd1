"""What README.md says without being executed: its Python calls what exists, its links and settings are there."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch

from launcher.bridge import Bridge
from launcher.checkpoint import Checkpoints
from launcher.cli.commands import COMMANDS
from launcher.config.schema import Config, SlurmClusterConfig
from tests.unit.readme import ROOT, anchors, blocks, console_commands, links, marked, named_settings, table_commands

# What the examples take as given: the program of the reader, and what an example further up has made.
GIVEN: dict[str, Any] = {
    "data": [],
    "steps": 1,
    "model": torch.nn.Module,
    "loader": object,
    "optimizer": torch.optim.Optimizer,
    "weights": Bridge,
}
MADE = {"bridge.connect": Bridge, "Checkpoints.of_run": Checkpoints}
"""What calls return, as the examples use it."""


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


def test_its_python_imports_and_calls_what_exists() -> None:
    names = Names()
    for block in blocks("python"):
        names.visit(ast.parse(compile_checked(block)))
    assert {"connect", "Bridge.publish", "Bridge.publish_async", "Bridge.guard", "Bridge.close"} <= {*names.checked}
    assert {"should_stop", "Checkpoints.of_run", "Checkpoints.restore", "Checkpoints.save"} <= {*names.checked}
    assert {"api_key", "inference_urls"} <= {*names.checked}


def compile_checked(block: str) -> str:
    compile(block, "README.md", "exec")
    return block


@pytest.mark.parametrize("wrong", ["weights.publich(model, version=1)", "weights.publish(model)", "bridge.connect()"])
def test_python_that_cannot_be_is_found(wrong: str) -> None:
    with pytest.raises((AttributeError, TypeError, AssertionError)):
        Names().visit(ast.parse(wrong))


def test_its_links_lead_somewhere() -> None:
    assert len(links()) > 5
    assert [link for link in links() if link not in anchors() and not (ROOT / link).exists()] == []


def leaf(path: str) -> bool:
    """Whether the schema has a setting, or an entry of a setting that is a dictionary."""
    at: list[Any] = [Config(), Config(cluster=SlurmClusterConfig())]
    for word in path.split("."):
        if any(isinstance(value, dict) for value in at):
            return True
        parts = [value for value in at if is_dataclass(value)]
        at = [getattr(part, word) for part in parts if word in {field.name for field in fields(part)}]
    return bool(at)


def test_its_settings_exist() -> None:
    groups = [field.name for field in fields(Config) if is_dataclass(getattr(Config(), field.name))]
    named = named_settings(groups)
    assert len(named) > 30
    assert [setting for setting in named if not leaf(setting)] == []
    assert not leaf("trainer.nothing") and not leaf("cluster.nothing.at.all")


def test_it_shows_every_command() -> None:
    shown = {words[1] for words in map(str.split, [*console_commands(), *table_commands()]) if words[0] == "launcher"}
    # `submit` is what overrides alone mean; `completion` stands in a command of the shell's.
    assert shown == COMMANDS.keys() - {"submit", "completion"}
    assert marked() == ["run", "test"]

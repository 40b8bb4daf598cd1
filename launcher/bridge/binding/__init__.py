"""How a trainer's tensors map into one engine worker's storage: learned once, replayed as plain copies."""

from __future__ import annotations

from launcher.bridge.binding.bind import bind
from launcher.bridge.binding.model import Binding, Bound, Copy, Way, never_used
from launcher.bridge.binding.needs import needs
from launcher.bridge.binding.rules import Place, Rule, parse_rules, read_rules
from launcher.bridge.binding.write import Writer, apply

__all__ = [
    "Binding",
    "Bound",
    "Copy",
    "Place",
    "Rule",
    "Way",
    "Writer",
    "apply",
    "bind",
    "needs",
    "never_used",
    "parse_rules",
    "read_rules",
]

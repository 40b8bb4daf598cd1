"""How a trainer's tensors map into one engine worker's storage: learned once, replayed as plain copies."""

from __future__ import annotations

from launcher.bridge.weightmap.bind import bind
from launcher.bridge.weightmap.model import Binding, Bound, Copy, Way, never_used
from launcher.bridge.weightmap.needs import needs
from launcher.bridge.weightmap.rules import Place, Rule, parse_rules, read_rules
from launcher.bridge.weightmap.write import Writer, apply

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

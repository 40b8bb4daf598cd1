"""Which process runs on which node: the model, the planner, and the table for people."""

from __future__ import annotations

from launcher.layout.model import Layout, Node, Process, Replica, Role, layout_from_json, layout_to_json
from launcher.layout.plan import PYTHON, plan
from launcher.layout.table import render_table

__all__ = [
    "PYTHON",
    "Layout",
    "Node",
    "Process",
    "Replica",
    "Role",
    "layout_from_json",
    "layout_to_json",
    "plan",
    "render_table",
]

"""The layout of a run, and the node or process that a name refers to."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from launcher.common.errors import LauncherError
from launcher.common.run_dir import LAYOUT, attempt_dir
from launcher.layout.model import Layout, Node, Process, layout_from_json
from launcher.observe.run_summary import newest_attempt

SHOWN = 8


class NoSuchTarget(LauncherError):
    """No node, and no process, is called like that."""

    exit_code = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutTarget:
    """A node, or one process on it."""

    node: Node
    process: Process | None = None

    @property
    def processes(self) -> tuple[Process, ...]:
        """What is meant: the one process, or all of the node."""
        return (self.process,) if self.process is not None else self.node.processes


def layout_of(run: Path) -> Layout:
    """The layout of the newest attempt, with the hostnames it got; before the first one, the planned one."""
    return layout_of_attempt(run, newest_attempt(run))


def layout_of_attempt(run: Path, attempt: int | None) -> Layout:
    """The layout of an attempt, with the hostnames it got; the planned one if it never came so far."""
    path = attempt_dir(run, attempt) / LAYOUT if attempt is not None else run / LAYOUT
    return layout_from_json((path if path.exists() else run / LAYOUT).read_text(encoding="utf-8"))


def find_target(layout: Layout, name: str) -> LayoutTarget:
    """What ``name`` means: a node rank (``3``), a hostname, or a process (``trainer-12``, ``inference-0.1``).

    Raises:
        NoSuchTarget: nothing.
    """
    if name.isdecimal():
        return LayoutTarget(node=_node(layout, int(name)))
    for node in layout.nodes:
        if node.hostname == name:
            return LayoutTarget(node=node)
    wanted = _normal(name)
    for node in layout.nodes:
        for process in node.processes:
            if _normal(process.name) == wanted:
                return LayoutTarget(node=node, process=process)
    names = [node.hostname for node in layout.nodes] + [process.name for n in layout.nodes for process in n.processes]
    near = difflib.get_close_matches(name, names, n=3)
    guess = f"did you mean {', '.join(near)}? " if near else ""
    raise NoSuchTarget(
        f"`{name}` is neither a node nor a process. HINT: {guess}Give a node rank (0 to {len(layout.nodes) - 1}), a"
        f" hostname ({_some(names[: len(layout.nodes)])}) or a process ({_some(names[len(layout.nodes) :])})."
    )


def find_rank(layout: Layout, role: str, rank: int) -> LayoutTarget:
    """The process of a trainer rank, or the head of a replica.

    Raises:
        NoSuchTarget: there is none.
    """
    found = [p for node in layout.nodes for p in node.processes if p.role.value == role and p.rank == rank]
    if not found:
        ranks = [p.rank for node in layout.nodes for p in node.processes if p.role.value == role]
        there = f"there are 0 to {max(ranks)}" if ranks else "there are none"
        raise NoSuchTarget(f"There is no {role} rank {rank}: {there}.")
    return LayoutTarget(node=layout.nodes[found[0].node_rank], process=found[0])


def _node(layout: Layout, node_rank: int) -> Node:
    if node_rank >= len(layout.nodes):
        raise NoSuchTarget(f"There is no node {node_rank}: there are 0 to {len(layout.nodes) - 1}.")
    return layout.nodes[node_rank]


def _normal(name: str) -> str:
    """``trainer-3`` and ``trainer-0003`` are the same."""
    stem, _, rank = name.rpartition("-")
    head, dot, part = rank.partition(".")
    return f"{stem}-{int(head)}{dot}{part}" if head.isdecimal() else name


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")

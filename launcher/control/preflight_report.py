"""What preflight finds: a node's report, what the reports of all nodes lead to, and how that is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from launcher.common.text import aligned

HEADER = ("node", "hostname", "what is wrong")
MAX_LINES = 64
"""Lines of the table that are worth printing; the event log has all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check on one node."""

    name: str
    ok: bool
    text: str
    """What was found; short, because a table shows it in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerReport:
    """A fault that one node found between itself and another. Only all reports together show which of them has it."""

    name: str
    """Of the check."""

    about: int
    """Node rank of the other one."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightReport:
    """Everything that the checks of one node found."""

    node_rank: int
    seconds: float
    """Duration, without the wait for other nodes."""

    findings: tuple[Finding, ...] = ()
    peer_reports: tuple[PeerReport, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    """What must be the same on every node, by name: versions and the like."""

    clock_s: float = 0.0
    """This node's clock minus node 0's."""

    clock_error_s: float = 0.0
    """Error bound of ``clock_s``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadNode:
    """A node that must not be used, and why."""

    node_rank: int
    hostname: str
    checks: tuple[str, ...]
    reason: str
    is_its_own: bool
    """False if every node has the same fault, which no other node would cure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightResult:
    """What all reports show together."""

    findings: Mapping[int, tuple[Finding, ...]]
    """By node rank: its own findings, and what the comparison with the others adds."""

    bad: tuple[BadNode, ...]

    def ok(self, node_rank: int) -> bool:
        """False for a bad node."""
        return all(node.node_rank != node_rank for node in self.bad)


def headline(bad: Sequence[BadNode], nodes: int) -> str:
    """What happened, in one sentence."""
    if len(bad) == nodes > 1 and not any(node.is_its_own for node in bad):
        return f"Preflight failed in the same way on all {nodes} nodes; no worker was started."
    which = f"node {bad[0].node_rank} ({bad[0].hostname})" if len(bad) == 1 else f"{len(bad)} nodes"
    return f"Preflight failed on {which} of {nodes}; no worker was started."


def table(bad: Sequence[BadNode]) -> list[str]:
    """One line for each bad node, under a header."""
    rows = [HEADER, *((str(node.node_rank), node.hostname, node.reason) for node in bad)]
    lines = aligned(rows)
    if len(lines) > MAX_LINES + 1:
        lines[MAX_LINES + 1 :] = [f"... and {len(lines) - MAX_LINES - 1} more; see the `preflight` events"]
    return lines

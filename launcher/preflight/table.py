"""The verdict as people read it: one line for each bad node."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.common.text import aligned
from launcher.preflight.model import BadNode

HEADER = ("node", "hostname", "what is wrong")
MOST_LINES = 64
"""Lines that are worth printing; the event log has all."""


def headline(bad: Sequence[BadNode], nodes: int) -> str:
    """What happened, in one sentence."""
    if len(bad) == nodes > 1 and not any(node.is_its_own for node in bad):
        return f"Preflight failed in the same way on all {nodes} nodes; no worker was started."
    which = f"node {bad[0].node_rank} ({bad[0].hostname})" if len(bad) == 1 else f"{len(bad)} nodes"
    return f"Preflight failed on {which} of {nodes}; no worker was started."


def table(bad: Sequence[BadNode]) -> list[str]:
    """The lines."""
    rows = [HEADER, *((str(node.node_rank), node.hostname, node.reason) for node in bad)]
    lines = aligned(rows)
    if len(lines) > MOST_LINES + 1:
        lines[MOST_LINES + 1 :] = [f"... and {len(lines) - MOST_LINES - 1} more; see the `preflight` events"]
    return lines

"""The names of the checks; what a check says, what a node reports, and what node 0 makes of all reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

ALONE = ("gpus", "cpus", "shm", "memlock", "nofile", "disk", "model", "ports", "ptrace", "slurm")
"""Checks that a node makes by itself."""

BETWEEN = ("names", "connect", "canary", "clock", "versions")
"""Checks that take two nodes."""

NAMES = (*ALONE, *BETWEEN)
"""What ``preflight.skip`` may hold, and what tables and events call the checks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check on one node."""

    name: str
    ok: bool
    text: str
    """What was found; short, because a table shows it in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """What one node finds wrong between itself and another; which of the two is to blame, only all reports tell."""

    name: str
    """Of the check."""

    about: int
    """Node rank of the other one."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that one node found out."""

    node_rank: int
    seconds: float
    """How long that took it, the wait for other nodes left out."""

    findings: tuple[Finding, ...] = ()
    complaints: tuple[Complaint, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    """What must be the same on every node, by name: versions and the like."""

    clock_s: float = 0.0
    """This node's clock minus node 0's."""

    clock_error_s: float = 0.0
    """Largest error of that."""

    def to_json(self) -> dict[str, Any]:
        """For the control connection."""
        return asdict(self)


def report_from_json(data: Mapping[str, Any]) -> Report:
    """The inverse of :meth:`Report.to_json`.

    Raises:
        TypeError, KeyError: it is no report.
    """
    return Report(
        **{
            **data,
            "findings": tuple(Finding(**finding) for finding in data["findings"]),
            "complaints": tuple(Complaint(**complaint) for complaint in data["complaints"]),
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BadNode:
    """A node that must not be used, and why."""

    node_rank: int
    hostname: str
    checks: tuple[str, ...]
    reason: str
    is_its_own: bool
    """False if every node has the same trouble, which no other node would cure."""

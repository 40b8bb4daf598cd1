"""What an update did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """What one update did; the same on every rank."""

    version: int
    seconds: float
    """From the call until every replica served the version; includes joining, the first time."""

    bytes: int
    """Bytes sent by all trainer ranks to all replicas."""

    density: float | None
    """Share of the elements that had changed since the version that a replica had, where only those were sent; None if
    no replica was sent changes.
    """

    pause_s: float
    """Longest time for which a replica did not decode."""

    replicas: int
    """Replicas that serve the version."""

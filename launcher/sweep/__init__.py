"""Sweeps: many runs from one command line, a ledger of which of them are missing, and their results."""

from __future__ import annotations

SWEEPS = "sweeps"
"""Of the output directory: where the ledgers of sweeps lie."""

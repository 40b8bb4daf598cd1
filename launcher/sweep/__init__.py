"""Sweeps: many runs from one command line, a ledger that knows which of them are missing, and what came of them."""

from __future__ import annotations

SWEEPS = "sweeps"
"""Of the output directory: where the ledgers of sweeps lie."""

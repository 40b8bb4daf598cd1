"""Sweeps: many runs from one command line, a ledger that knows which of them are missing, and what came of them."""

"""Runs as seen from outside: found by name, summarized from their event logs, with the state of their jobs."""

from __future__ import annotations

"""Runs as commands see them from outside: found by name, told by the ends of their logs, asked of their cluster."""

from __future__ import annotations

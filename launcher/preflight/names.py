"""Names of the checks: what ``preflight.skip`` may hold, and what tables and events call them."""

from __future__ import annotations

ALONE = ("gpus", "shm", "memlock", "nofile", "disk", "model", "ports")
"""Checks that a node makes by itself."""

BETWEEN = ("names", "connect", "canary", "clock", "versions")
"""Checks that take two nodes."""

NAMES = (*ALONE, *BETWEEN)

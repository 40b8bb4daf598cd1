"""The names of the checks."""

from __future__ import annotations

ALONE = ("gpus", "cpus", "shm", "memlock", "nofile", "disk", "model", "ports", "ptrace", "slurm")
"""Checks that a node makes by itself."""

BETWEEN = ("names", "connect", "canary", "clock", "versions")
"""Checks that take two nodes."""

NAMES = (*ALONE, *BETWEEN)
"""What ``preflight.skip`` may hold, and what tables and events call the checks."""

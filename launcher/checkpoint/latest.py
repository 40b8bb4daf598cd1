"""Looks at checkpoints without torch."""

from __future__ import annotations

from pathlib import Path

from launcher.checkpoint.store import complete_checkpoints, read_manifest


def latest_step(directory: Path) -> int | None:
    """The step of the latest complete checkpoint; None if there is none."""
    found = complete_checkpoints(directory)
    return read_manifest(found[0]).step if found else None

"""Removes snapshots that nothing uses any more: neither a run in the same output directory, nor a rendered script."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher.observe.find import is_run
from launcher.snapshot.place import RENDERED, SNAPSHOT, read_record
from launcher.snapshot.tree import DRAFT, STALE_DRAFT_S, STORE

_DEPTHS = ("*", "*/*", "*/*/*")
"""Runs lie right below the output directory; a person may have sorted them into folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What was done."""

    removed: tuple[str, ...]
    """Names of snapshots."""

    kept: tuple[str, ...]
    size: int
    """Bytes that were freed."""

    def text(self) -> str:
        """For people."""
        kept = f"{len(self.kept)} in use or from today"
        what = "1 snapshot" if len(self.removed) == 1 else f"{len(self.removed)} snapshots"
        return f"removed {what} that no run uses, {self.size / 2**20:.1f} MiB; kept {kept}"


def prune(output_dir: Path) -> Pruned:
    """Removes them. Those of the last day stay: a submission that is under way may be about to use one.

    Raises:
        OSError: one cannot be removed.
    """
    used = set(_used(output_dir))
    removed, kept, size = [], [], 0
    for home in sorted(output_dir.glob(f"{STORE}*")):
        for path in sorted(path for path in home.iterdir() if not path.name.startswith(DRAFT)):
            if path.resolve() in used or time.time() - path.stat().st_mtime < STALE_DRAFT_S:
                kept.append(path.name)
                continue
            # First out of sight, so that nobody takes half of it for the whole.
            draft = home / f"{DRAFT}{secrets.token_hex(6)}"
            path.rename(draft)
            size += sum(file.lstat().st_size for file in draft.rglob("*") if not file.is_dir())
            shutil.rmtree(draft)
            removed.append(path.name)
    return Pruned(removed=tuple(removed), kept=tuple(kept), size=size)


def _used(output_dir: Path) -> Iterator[Path]:
    runs = [path.parent for depth in _DEPTHS for path in output_dir.glob(f"{depth}/{SNAPSHOT}") if is_run(path.parent)]
    for directory in (*runs, *(output_dir / RENDERED).glob("*/")):
        record = read_record(directory)
        for tree in (record.code, record.launcher) if record is not None else ():
            if tree is not None:
                yield Path(os.path.realpath(tree.tree)).parent

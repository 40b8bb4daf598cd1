"""The memory of a run's agents and guards on this machine, from time to time."""

from __future__ import annotations

import time
from pathlib import Path

INTERVAL_S = 10.0
WARM_S = 60.0
"""So long after its first look a process has loaded what it needs."""

NAMES = {b"launcher.node\0": "agent", b"submitit.core._submit\0": "guard"}


class ProcessMemory:
    """Resident memory of each process, as it was early and as it was last.

    Args:
        run_dir: of the run whose processes are meant.
    """

    def __init__(self, run_dir: Path) -> None:
        self._needle = str(run_dir).encode()
        self._next = 0.0
        self._first: dict[tuple[str, int], float] = {}
        self._early: dict[tuple[str, int], float] = {}
        self._late: dict[tuple[str, int], float] = {}

    def look(self) -> None:
        """Looks, if it is time."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + INTERVAL_S
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                title = (entry / "cmdline").read_bytes()
                name = next((name for words, name in NAMES.items() if words in title), None)
                if name is None or self._needle not in title:
                    continue
                pages = int((entry / "statm").read_text(encoding="utf-8").split()[1])
            except (OSError, IndexError):
                continue
            key = (name, int(entry.name))
            if now - self._first.setdefault(key, now) >= WARM_S:
                self._early.setdefault(key, pages * 4 / 1024)
                self._late[key] = pages * 4 / 1024

    def grown(self) -> dict[str, tuple[float, float]]:
        """MiB of each process that ran for longer than :data:`WARM_S`: then, and when it was last seen."""
        return {f"{name} {pid}": (early, self._late[name, pid]) for (name, pid), early in self._early.items()}

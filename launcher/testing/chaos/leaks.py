"""What is left of a run on a node: ``python -m launcher.testing.chaos.leaks RUN_DIR`` prints it as a JSON list."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def belongs_to(pid: int, run_dir: Path) -> bool:
    """Whether a process is of a run, by its environment or its command line; however it detached itself."""
    needle = str(run_dir).encode()
    try:
        entry = Path(f"/proc/{pid}")
        title = (entry / "cmdline").read_bytes()
        return needle in (entry / "environ").read_bytes() or (
            needle in title and b"launcher.testing.chaos" not in title
        )
    except OSError:
        return False


def processes_of(run_dir: Path) -> list[str]:
    """Processes of this machine that belong to a run, each as one line."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [f"process {pid}: {_title(pid)}" for pid in pids if pid != os.getpid() and belongs_to(pid, run_dir)]


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    except OSError:
        return ""


def shared_memory(folder: Path = Path("/dev/shm")) -> list[str]:
    """What has a name in the shared memory of this node, each as one line."""
    try:
        return [f"shared memory {path.name}" for path in sorted(folder.iterdir())]
    except OSError:
        return []


if __name__ == "__main__":
    print(json.dumps(processes_of(Path(sys.argv[1])) + shared_memory()), flush=True)

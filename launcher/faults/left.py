"""What is left of a run on a node: ``python -m launcher.faults.left RUN_DIR`` prints it as a JSON list."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def processes_of(run_dir: Path) -> list[str]:
    """Processes of this machine that belong to a run, however they detached themselves, each as one line."""
    needle = str(run_dir).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            title = (entry / "cmdline").read_bytes()
            if needle in (entry / "environ").read_bytes() or (needle in title and b"launcher.faults" not in title):
                found.append(f"process {entry.name}: {title.replace(bytes(1), b' ').decode(errors='replace')[:200]}")
        except OSError:
            continue
    return found


def shared_memory(folder: Path = Path("/dev/shm")) -> list[str]:
    """What has a name in the shared memory of this node, each as one line."""
    try:
        return [f"shared memory {path.name}" for path in sorted(folder.iterdir())]
    except OSError:
        return []


if __name__ == "__main__":
    print(json.dumps(processes_of(Path(sys.argv[1])) + shared_memory()), flush=True)

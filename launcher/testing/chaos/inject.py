"""Sends a signal: ``python -m launcher.testing.chaos.inject RUN_DIR PID RELATION SIGNAL [GO]``, on the node where the
process is.

RELATION says where the target is from the worker PID: ``self``; ``agent``, its parent; any other word: the processes
below the worker whose title contains it. Processes of other runs are never signalled. With GO it finds its targets and
then waits for that file: a publication is over sooner than a program on another node has started.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from launcher.common.procfs import descendants
from launcher.testing.chaos.leaks import belongs_to

FIND_TIMEOUT_S = 90.0
"""An engine imports for long before it starts others."""

GO_TIMEOUT_S = 180.0
LOOK_S = 0.005


def targets(pid: int, relation: str) -> list[int]:
    """Process ids of the targets; empty if there are none (yet)."""
    if relation == "self":
        return [pid]
    if relation == "agent":
        return [parent] if (parent := _parent(pid)) else []
    return [below for below in descendants(pid) if relation in _title(below)]


def main() -> int:
    """Returns 1 if there was no target, 2 if GO did not appear in time."""
    run_dir, worker, relation, name, *go = sys.argv[1:]
    signum = signal.Signals[f"SIG{name}"]
    deadline = time.monotonic() + FIND_TIMEOUT_S
    while not (found := [pid for pid in targets(int(worker), relation) if belongs_to(pid, Path(run_dir))]):
        if time.monotonic() > deadline or not belongs_to(int(worker), Path(run_dir)):
            return 1
        time.sleep(LOOK_S)
    deadline = time.monotonic() + GO_TIMEOUT_S
    while go and not Path(go[0]).exists():
        if time.monotonic() > deadline:
            return 2
        time.sleep(LOOK_S)
    for target in found:
        if belongs_to(target, Path(run_dir)):  # its number may be another's by now
            os.kill(target, signum)
    print(f"{time.time():.3f} {' '.join(map(str, found))}", flush=True)
    return 0


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return None


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())

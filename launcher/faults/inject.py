"""Strikes: ``python -m launcher.faults.inject PID RELATION SIGNAL [GO]``, on the node where the process is.

RELATION says where the target is from the worker PID: ``self``; ``agent``, its parent; any other word: the processes
below the worker whose title contains it. With GO it finds its targets, and then waits for that file: a publication is
over sooner than a program on another node has started.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from launcher.agent.proctree import descendants

FIND_TIMEOUT_S = 30.0
GO_TIMEOUT_S = 180.0
LOOK_S = 0.005


def targets(pid: int, relation: str) -> list[int]:
    """Process ids to strike; empty if there are none (yet)."""
    if relation == "self":
        return [pid]
    if relation == "agent":
        return [_parent(pid)]
    return [below for below in descendants(pid) if relation in _title(below)]


def main() -> int:
    """Returns 1 if there was nothing to strike, 2 if nobody gave the word."""
    pid, relation, name, *go = sys.argv[1:]
    signum = signal.Signals[f"SIG{name}"]
    deadline = time.monotonic() + FIND_TIMEOUT_S
    while not (found := targets(int(pid), relation)):
        if time.monotonic() > deadline:
            return 1
        time.sleep(LOOK_S)
    deadline = time.monotonic() + GO_TIMEOUT_S
    while go and not Path(go[0]).exists():
        if time.monotonic() > deadline:
            return 2
        time.sleep(LOOK_S)
    for target in found:
        os.kill(target, signum)
    print(f"{time.time():.3f} {' '.join(map(str, found))}", flush=True)
    return 0


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())

"""Strikes: ``python -m launcher.faults.inject PID RELATION SIGNAL``, on the node where the process is.

RELATION says where the target is from the worker PID: ``self``; ``agent``, its parent; ``node``, the guard above the
agent with everything below it; any other word: the processes below the worker whose title contains it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from launcher.agent.proctree import descendants

FIND_TIMEOUT_S = 30.0


def targets(pid: int, relation: str) -> list[int]:
    """Process ids to strike, in order; empty if there are none (yet)."""
    if relation == "self":
        return [pid]
    if relation == "agent":
        return [_parent(pid)]
    if relation == "node":
        guard = _parent(_parent(pid))
        return [guard, *descendants(guard)]
    return [below for below in descendants(pid) if relation in _title(below)]


def main() -> int:
    """Returns 1 if there was nothing to strike."""
    pid, relation, name = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    signum = signal.Signals[f"SIG{name}"]
    deadline = time.monotonic() + FIND_TIMEOUT_S
    while not (found := targets(pid, relation)):
        if time.monotonic() > deadline:
            return 1
        time.sleep(0.02)
    for target in found:
        os.kill(target, signum)
    print(f"{time.time():.3f} {' '.join(map(str, found))}")
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

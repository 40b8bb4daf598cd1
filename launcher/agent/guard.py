"""The process above an agent: whatever happens to the agent, nothing that it started outlives the guard.

``python -m launcher.agent.guard RUN_DIR`` is what one node runs. The guard starts the agent, passes signals on, and when
the agent has ended, in whatever way, ends every process that is left below it. It finds them because it is their
subreaper: orphans are handed to it, wherever in the tree they were. In turn the agent gets SIGTERM if the guard dies.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from launcher.agent.node import node_environment
from launcher.agent.proctree import become_subreaper, end_descendants, signal_on_parent_death
from launcher.run_dir import attempt_dir

LEFTOVER_GRACE_S = 0.5
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def guard(command: Sequence[str], log: Path) -> int:
    """Runs one agent to its end. Main thread only.

    Args:
        command: the agent's command line.
        log: the agent's output is added to it.

    Returns:
        The agent's exit code; 128 + n if signal n ended it; 1 if a process could not be ended.
    """
    become_subreaper()
    pending: list[int] = []
    agent: subprocess.Popen[bytes] | None = None

    def pass_on(signum: int, _frame: FrameType | None) -> None:
        if agent is None:
            pending.append(signum)
        elif agent.poll() is None:
            agent.send_signal(signum)

    previous = {signum: signal.signal(signum, pass_on) for signum in PASSED_ON}
    try:
        with log.open("ab") as output:
            agent = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        for signum in pending:
            agent.send_signal(signum)
        code = agent.wait()
    finally:
        stuck = end_descendants(LEFTOVER_GRACE_S)
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if code < 0:
        print(f"launcher: the agent was ended by signal {-code} ({signal.Signals(-code).name})", file=sys.stderr)
        code = 128 - code
    if stuck:
        print(f"launcher: these processes cannot be ended: {stuck}", file=sys.stderr)
        code = code or 1
    return code


def guard_node(run_dir: Path) -> int:
    """Guards the agent of the node that this process is on; see :func:`guard`."""
    node = node_environment()
    logs = attempt_dir(run_dir, node.attempt) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "launcher.agent", str(run_dir), "--guard", str(os.getpid())]
    return guard(command, logs / f"agent-{node.node_rank:04d}.log")


if __name__ == "__main__":
    signal_on_parent_death(signal.SIGTERM)
    sys.exit(guard_node(Path(sys.argv[1])))

"""``python -m launcher.node RUN_DIR``: one node's agent; started by its shim."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path

from launcher.common.env import LAUNCHER_SCRATCH
from launcher.common.errors import LauncherError
from launcher.common.procfs import become_subreaper, end_descendants, is_stopped, signal_on_parent_death
from launcher.node.agent import run
from launcher.node.failover import report_failure
from launcher.node.signals import FORWARDED_SIGNALS, StopRequest

LEFTOVER_GRACE_S = 0.5


def main() -> int:
    """Runs the agent. An expected failure is one message in its log, and is reported to the run."""
    parser = argparse.ArgumentParser(prog="launcher.node", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--shim", type=int, required=True, help="process id of the shim")
    arguments = parser.parse_args()
    stop = StopRequest()
    stop.listen(FORWARDED_SIGNALS)
    # Should the shim be killed, the agent does what the shim would have done: nothing that it started is left behind.
    signal_on_parent_death(signal.SIGTERM)
    become_subreaper()
    if os.getppid() != arguments.shim:
        return 1
    try:
        return run(arguments.run_dir, stop, arguments.shim)
    except LauncherError as error:
        print(f"launcher: {error}", file=sys.stderr)
        return report_failure(arguments.run_dir, str(error), error.exit_code)
    finally:
        # Python's own end would undo a handler, and a late signal make this node look as if it had failed.
        for signum in FORWARDED_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        end_descendants(LEFTOVER_GRACE_S)
        if os.getppid() == arguments.shim and is_stopped(arguments.shim):
            os.kill(arguments.shim, signal.SIGCONT)  # or the node would never be given back
        if os.getppid() != arguments.shim and (scratch := os.environ.get(LAUNCHER_SCRATCH)):
            shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())

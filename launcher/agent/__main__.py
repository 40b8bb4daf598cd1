"""``python -m launcher.agent RUN_DIR``: one node's agent; started by its guard."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from launcher.agent.agent import run
from launcher.agent.proctree import signal_on_parent_death
from launcher.errors import LauncherError


def main() -> int:
    """Runs the agent; an expected failure is one message on standard error."""
    parser = argparse.ArgumentParser(prog="launcher.agent", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--guard", type=int, help="process id of the guard")
    arguments = parser.parse_args()
    signal_on_parent_death(signal.SIGTERM)
    if arguments.guard is not None and os.getppid() != arguments.guard:
        return 1
    try:
        return run(arguments.run_dir)
    except LauncherError as error:
        print(f"launcher: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())

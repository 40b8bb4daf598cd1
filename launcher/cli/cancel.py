"""``launcher cancel RUN``: ends runs and waits until they have ended."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from launcher.cli.parser import CommandParser
from launcher.observe.cancel import cancel
from launcher.observe.find import RUN_HELP, add_output_dir, find_run
from launcher.observe.run_status import statuses
from launcher.observe.run_summary import summarize
from launcher.slurm.client import CALL_TIMEOUT_S

TIMEOUT_S = 180.0


def main(arguments: Sequence[str]) -> int:
    """Ends each run in order; one that has ended is left alone."""
    parser = CommandParser(
        "cancel",
        "Ends runs and waits until nothing of them is left: `scancel` on SLURM; SIGTERM to the shims of the nodes of a"
        " local run. Harmless for a run that has ended.",
        examples=["launcher cancel last", "launcher cancel 4711 4712 --timeout-s 30"],
        exit_codes={1: "a run has not ended in time, or cannot be reached from here"},
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help=RUN_HELP)
    add_output_dir(parser)
    parser.add_argument("--timeout-s", type=float, default=TIMEOUT_S, help=f"longest wait (default: {TIMEOUT_S:g})")
    parser.add_json("what was ended")
    options = parser.parse_args(arguments)
    # The same run named twice is one run.
    paths = dict.fromkeys(find_run(name, options.output_dir) for name in options.runs)
    # What is cancelled should be certain, so this waits longer than a command that only shows something.
    found, problem = statuses([summarize(path) for path in paths], timeout_s=CALL_TIMEOUT_S)
    if problem is not None:
        print(f"launcher: {problem}", file=sys.stderr)
    results = cancel(found, options.timeout_s, lambda line: print(f"launcher: {line}", file=sys.stderr, flush=True))
    if options.json:
        print(json.dumps([asdict(result) for result in results], indent=1))
        return 0
    for result in results:
        if result.ended:
            print(f"{result.name} was {result.was}; ended {', '.join(result.ended)}")
        else:
            print(f"{result.name} had ended: {result.was}")
    return 0

"""``launcher runs``: all runs, one line each."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from launcher.cli.parser import CommandParser
from launcher.common.text import age, aligned
from launcher.observe.find import add_output_dir, run_dirs, submitted_at
from launcher.observe.run_status import RunStatus, open_first, statuses
from launcher.observe.run_summary import summarize
from launcher.snapshot.store import prune

SHOWN = 20
HEADER = ("run", "state", "age", "nodes", "step", "reward", "job")


def main(arguments: Sequence[str]) -> int:
    """Prints the table."""
    parser = CommandParser(
        "runs",
        "Lists runs: those that are not over first, then the newest. SLURM is queried once for all of them; a state"
        " that it does not answer is marked `?` and is the last that was known. Run directories are yours to remove;"
        " --prune removes the snapshots of code that no run uses any more.",
        examples=[
            "launcher runs",
            "launcher runs --all --json --output-dir /scratch/me/runs",
            "launcher runs --prune",
        ],
    )
    add_output_dir(parser)
    parser.add_argument("--all", action="store_true", help=f"all of them, not only {SHOWN}")
    parser.add_argument("--prune", action="store_true", help="remove snapshots of code that no run here uses; no list")
    parser.add_json("the runs, or what was removed,")
    options = parser.parse_args(arguments)
    if options.prune:
        pruned = prune(options.output_dir)
        print(json.dumps(asdict(pruned)) if options.json else pruned.text())
        return 0
    paths = run_dirs(options.output_dir)
    found, problem = statuses([summarize(path) for path in sorted(paths, key=submitted_at, reverse=True)])
    found = open_first(found)
    count = len(found)
    if not options.all:
        found = found[: max(SHOWN, sum(not status.is_over for status in found))]
    if options.json:
        print(json.dumps([as_data(status) for status in found], indent=1))
    elif not found:
        print(f"no runs in {options.output_dir}")
    else:
        print("\n".join(aligned([HEADER, *(_row(status) for status in found)], right=(2, 3, 5))))
        if count > len(found):
            print(f"and {count - len(found)} more: --all")
    if problem is not None:
        print(f"launcher: {problem} States marked `?` are the last known ones.", file=sys.stderr)
    return 0


def as_data(status: RunStatus) -> dict[str, Any]:
    """A run as ``--json`` gives it; times are unix seconds."""
    run = status.summary
    return {
        "name": run.path.name,
        "path": str(run.path.absolute()),
        "state": status.state,
        "is_over": status.is_over,
        "is_certain": status.is_certain,
        "submitted": run.submitted,
        "cluster": run.cluster,
        "job_id": run.job_id,
        "job_state": status.job.name if status.job is not None else None,
        "attempt": run.attempt,
        "nodes": run.nodes,
        "step": run.step,
        "steps": run.steps,
        "reward": run.reward,
        "outcome": run.outcome,
    }


def _row(status: RunStatus) -> tuple[str, ...]:
    run = status.summary
    planned = f"/{run.steps}" if run.steps is not None else ""
    return (
        run.path.name,
        status.state + ("" if status.is_certain else "?"),
        age(time.time() - run.submitted),
        str(run.nodes or "-"),
        f"{run.step}{planned}" if run.step is not None else "-",
        f"{run.reward:.3f}" if run.reward is not None else "-",
        run.job_id or (run.cluster or "-"),
    )

"""``launcher why RUN``: which process failed first, why, and whether to try again."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.cli.parser import CommandParser
from launcher.common.errors import LauncherError
from launcher.observe.find import add_run_argument, find_run
from launcher.slurm.states import JobState

NOTHING = 1


def main(arguments: Sequence[str]) -> int:
    """Explains one run."""
    from launcher.observe.root_cause.diagnosis import diagnose
    from launcher.observe.root_cause.render import render

    parser = CommandParser(
        "why",
        "Says which process of a run failed first, on which node, of what kind the failure is, what was only a"
        " consequence of it, and whether to try again with what change.",
        examples=["launcher why last", "launcher why 4711 --json"],
        exit_codes={NOTHING: "the run has not failed: there is nothing to explain"},
    )
    add_run_argument(parser, default="last")
    parser.add_argument("--offline", action="store_true", help="do not query SLURM")
    parser.add_json("every attempt")
    options = parser.parse_args(arguments)
    run_dir = find_run(options.run, options.output_dir)
    diagnosis = diagnose(run_dir, (lambda _: None) if options.offline else job_state_of)
    if options.json:
        print(json.dumps(diagnosis.to_json(), indent=2, default=str))
    else:
        print(f"run {run_dir}")
        print(render(diagnosis))
    last = diagnosis.last
    return 0 if last is not None and last.cause is not None else NOTHING


def job_state_of(run_dir: Path) -> JobState | None:
    """The state of the run's job; None if it is no job, or if SLURM does not answer."""
    import subprocess

    from launcher.observe.run_summary import job_id_of
    from launcher.slurm.query import job_state

    job_id = job_id_of(run_dir)
    if job_id is None:
        return None
    try:
        return job_state(job_id)
    except (LauncherError, subprocess.TimeoutExpired) as error:
        print(f"launcher: {error}", file=sys.stderr)
        return None

"""``launcher resume``: the next attempt of a run that has ended, from its latest checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from launcher.checkpoint.store import latest_step
from launcher.cli.parser import CommandParser
from launcher.common.errors import STOPPED, LauncherError
from launcher.common.run_dir import checkpoint_dir
from launcher.common.text import command_line
from launcher.config import load_run_config
from launcher.observe.find import add_run_argument, find_run
from launcher.observe.run_status import statuses
from launcher.observe.run_summary import summarize
from launcher.submit.run import resume


class NothingToResume(LauncherError):
    """The run has not ended, or has nothing left to do."""

    exit_code = 2


def main(arguments: Sequence[str]) -> int:
    """Starts it, and follows it if its configuration says so."""
    parser = CommandParser(
        "resume",
        "Goes on with a run that was stopped, has failed or was cancelled: the same configuration, code and directory,"
        " as its next attempt, from its latest complete checkpoint. On SLURM it is a new job.",
        examples=["launcher resume last", "launcher resume runs/tiny-20261123-045457-ab43"],
        exit_codes={
            3: "`sbatch` refused the job",
            STOPPED: "a run that is followed was stopped again; it can be resumed",
            130: "interrupted",
        },
    )
    add_run_argument(parser)
    parser.add_json("what was queued, if it is not followed,")
    options = parser.parse_args(arguments)
    run = find_run(options.run, options.output_dir)
    _check_resumable(run)
    step = latest_step(checkpoint_dir(load_run_config(run).checkpoint.dir, run))
    start = f"from the checkpoint of step {step}" if step is not None else "from the start: there is no checkpoint"
    if not options.json:
        print(f"run directory {run}\nresuming {start}", flush=True)
    job, code = resume(run)
    if code is not None:
        return code
    if options.json:
        print(json.dumps({"run_dir": str(run), "job_id": job.job_id, "step": step}))
    else:
        print(f"submitted job {job.job_id}\nnext:", flush=True)
        print(f"  {command_line('status', run)}\n  {command_line('logs', '-f', run)}", flush=True)
    return 0


def _check_resumable(run: Path) -> None:
    (status,), problem = statuses([summarize(run)])
    if not status.is_over and not (status.summary.job is None and status.summary.attempt is None):
        why = f" ({problem})" if problem else ""
        hint = f"`{command_line('cancel', run)}`"
        raise NothingToResume(f"{run} has not ended: it is {status.state}{why}. HINT: {hint} ends it.")
    if status.state == "completed":
        raise NothingToResume(f"{run} is completed: there is nothing left to do.")

"""``launcher replay RUN``: submits a run's frozen configuration and its code again, as a new run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cli.parser import CommandParser
from launcher.submit.composing import explained

if TYPE_CHECKING:
    from launcher.config.schema import Config
    from launcher.snapshot.record import Code
    from launcher.snapshot.replay import Differences

SNAPSHOT, CURRENT = "snapshot", "current"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRequest:
    """What is to be submitted."""

    config: Config
    code: Code | None
    differences: Differences
    """From the earlier run to this moment."""


def main(arguments: Sequence[str]) -> int:
    """Says what is different from then, and submits."""
    from launcher.observe.find import add_run_argument, find_run
    from launcher.observe.run_summary import job_id_of
    from launcher.submit.run import run
    from launcher.submit.run_dir import new_run_dir

    parser = CommandParser(
        "replay",
        "Submits a run again as a new one: its frozen configuration, with single values changed, and the code it had."
        " What is different in today's checkout and environment is shown.",
        examples=[
            "launcher replay last",
            "launcher replay tiny-20261123 trainer.seed=1",
            "launcher replay runs/tiny-20261123-045457-ab43 --code current --json",
        ],
        exit_codes={3: "`sbatch` refused the job"},
    )
    add_run_argument(parser)
    parser.add_argument("overrides", nargs="*", help="values to change, as in `trainer.steps=10`")
    parser.add_argument(
        "--code",
        choices=(SNAPSHOT, CURRENT),
        default=SNAPSHOT,
        help="run the code of then (default), or what the checkout that it came from holds now",
    )
    parser.add_json("the new run, and the differences,")
    options = parser.parse_intermixed_args(arguments)
    earlier = find_run(options.run, options.output_dir)
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        request = prepare(earlier, options.overrides, options.code)
        print(request.differences.text())
        path = new_run_dir(request.config)
        exit_code = run(request.config, path=path, code=request.code)
    if options.json:
        new = {"replay_of": earlier.name, "run_dir": str(path), "job_id": job_id_of(path), "code": options.code}
        print(json.dumps({**new, "differences": request.differences.to_json(), "exit_code": exit_code}))
    return exit_code


def prepare(earlier: Path, overrides: Sequence[str], code: str) -> ReplayRequest:
    """The configuration and the code of a run for another submission, and what is different by now.

    Args:
        code: :data:`SNAPSHOT` or :data:`CURRENT`.

    Raises:
        LauncherError: it cannot be submitted again like that.
    """
    from launcher.snapshot.record import read_record
    from launcher.snapshot.replay import differences, recorded_environment, replayed, replayed_config, submitted_from
    from launcher.snapshot.resolve_paths import resolve_paths
    from launcher.submit.run import snapshot_code
    from launcher.submit.validate import check

    with explained():
        config = resolve_paths(replayed_config(earlier, overrides), Path.cwd())
    check(config)
    then = replayed(earlier) if code == SNAPSHOT else None
    found = differences(read_record(earlier), recorded_environment(earlier), Path(config.output_dir))
    if then is not None:
        print(f"code {then.text()}")
        return ReplayRequest(config=config, code=then, differences=found)
    config = dataclasses.replace(config, snapshot=True)
    now = snapshot_code(config, submitted_from(earlier))
    now = dataclasses.replace(now, replay_of=earlier.name) if now is not None else None
    return ReplayRequest(config=config, code=now, differences=found)

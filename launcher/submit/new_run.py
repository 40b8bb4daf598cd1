"""Makes a run directory on the batch host, from the configuration in a job script; prints its path.

``python -m launcher.submit.new_run [--code DIRECTORY] [--submitit] [--script FILE] < CONFIGURATION``
"""

from __future__ import annotations

import argparse
import glob
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from launcher.common.errors import AllocationError, LauncherError
from launcher.common.run_dir import SUBMITIT, record_job
from launcher.common.utf8 import use_utf8
from launcher.config import from_yaml
from launcher.config.schema import Config
from launcher.layout import plan
from launcher.slurm.jobs import JobId
from launcher.snapshot.record import SavedCode
from launcher.submit.composing import explained
from launcher.submit.resources import CLUSTER_OPTIONS, requests, slurm_config
from launcher.submit.run_dir import create
from launcher.submit.validate import check


def new_run(
    text: str,
    environ: Mapping[str, str],
    *,
    code: Path | None = None,
    script: Path | None = None,
    with_submitit: bool = False,
) -> Path:
    """The run directory of the job whose environment this is; a requeued job has one already.

    Args:
        text: the configuration, as :func:`launcher.config.to_yaml` writes it.
        environ: the batch script's.
        code: keeps the code of the run; None for the code that is imported here.
        script: the job script, of which the run keeps a copy.
        with_submitit: leave what submitit looks for when a node starts.

    Raises:
        ConfigError: the configuration has problems, or the directory cannot be written.
        AllocationError: the job has another number of nodes than the configuration.
    """
    with explained():
        config = from_yaml(text)
    check(config)
    _check_nodes(config, environ)
    job_id = environ["SLURM_JOB_ID"]
    name = f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}-job{job_id}"
    if int(environ.get("SLURM_RESTART_COUNT", "0")) and (found := _earlier(config, job_id)) is not None:
        return found
    run_dir = create(
        config, plan(config), None if code is None else SavedCode.load(code), Path(config.output_dir).absolute() / name
    )
    if script is not None:
        shutil.copyfile(script, run_dir / "job.sh")
    if with_submitit:
        _leave_task(run_dir, job_id)
    chosen = set(CLUSTER_OPTIONS) & set(slurm_config(config).sbatch)
    cluster = environ.get("SLURM_CLUSTER_NAME") if chosen else None
    record_job(run_dir, config.cluster.kind, {"job_id": str(JobId(job_id, cluster))})
    return run_dir


def _check_nodes(config: Config, environ: Mapping[str, str]) -> None:
    asked = requests(config)
    # The batch script of a heterogeneous job sees its first component.
    given, wanted = int(environ["SLURM_JOB_NUM_NODES"]), asked[0].nodes
    if given != wanted:
        raise AllocationError(
            f"The job has {given} {asked[0].what}, but the configuration in its script asks for {wanted}."
            " HINT: write the same number in `#SBATCH --nodes` and, under `layout`, in `nodes`."
        )


def _earlier(config: Config, job_id: str) -> Path | None:
    """The run directory that an earlier start of this job made; the newest, as job ids may come again after years."""
    pattern = f"{glob.escape(config.name)}-*-job{job_id}"
    return max(Path(config.output_dir).absolute().glob(pattern), default=None)


def _leave_task(run_dir: Path, job_id: str) -> None:
    from submitit.core.utils import DelayedSubmission

    from launcher.submit.executor import AgentTask

    task = DelayedSubmission(AgentTask(run_dir))
    task.set_timeout(0, 0)
    (run_dir / SUBMITIT).mkdir()
    task.dump(run_dir / SUBMITIT / f"{job_id}_submitted.pkl")


def main() -> int:
    """Prints the path; an expected failure is one message in the job's log."""
    use_utf8()
    parser = argparse.ArgumentParser(prog="launcher.submit.new_run")
    parser.add_argument("--code", type=Path, help="where `launcher render` kept the code")
    parser.add_argument("--script", type=Path, help="the job script")
    parser.add_argument("--submitit", action="store_true", help="the nodes are started through submitit")
    options = parser.parse_args()
    try:
        run_dir = new_run(
            sys.stdin.read(), os.environ, code=options.code, script=options.script, with_submitit=options.submitit
        )
    except LauncherError as error:
        print(f"launcher: {error}", file=sys.stderr)
        return error.exit_code
    print(f"launcher: run directory {run_dir}", file=sys.stderr)
    print(run_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())

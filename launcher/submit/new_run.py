"""Job scripts that stand for themselves: renders one, and makes the run directory when it starts on the batch host.

``python -m launcher.submit.new_run [--code DIRECTORY] [--submitit] [--script FILE] < CONFIGURATION``
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import os
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from launcher.common.errors import AllocationError, LauncherError
from launcher.common.run_dir import SUBMITIT, record_job
from launcher.common.startup import use_utf8
from launcher.config import from_yaml, to_yaml
from launcher.config.schema import Config
from launcher.layout import plan
from launcher.slurm.jobs import JobId
from launcher.snapshot.create import launcher_home
from launcher.snapshot.record import RENDERED, SavedCode, code_location, save
from launcher.snapshot.resolve_paths import resolve_command_paths, resolve_paths
from launcher.submit.composing import explained
from launcher.submit.job_script import job_script, node_python, render, template_path
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


END = "END_OF_CONFIGURATION"


def render_script(config: Config, file: Path | None, *, with_submitit: bool) -> str:
    """The text of a script for ``sbatch``; each submission creates its own run directory.

    With ``snapshot=true`` the code of now is kept below ``output_dir`` first, and the script runs that.

    Args:
        config: free of problems.
        file: where the script is going to be; its log is written beside it.
        with_submitit: nodes are started through submitit, which keeps its own record of each task.

    Raises:
        ConfigError: the template, or the code, cannot be used.
        TypeError: the run is not for SLURM.
    """
    here = Path.cwd()
    config = resolve_paths(config, here)
    code: Path | None = None
    if config.snapshot:
        config, code = _keep_code(config)
    place = None if code is None else code_location(code)
    path = _python_path() if place is None else place.python_path
    exports = [f"export PYTHONPATH={shlex.quote(path)}"] if path else []
    folder = here if place is None else place.directory
    new_run = [sys.executable, "-m", "launcher.submit.new_run", *(["--code", str(code)] if code else [])]
    new_run += ["--submitit"] if with_submitit else []
    python = node_python(config)
    log = Path(f"{config.name}-%j.out") if file is None else file.with_name(f"{file.stem}-%j.out")
    script = job_script(
        config,
        title=(
            "Submit it with `sbatch`, as often as you like: each time is a new run.",
            "The #SBATCH lines are the request to SLURM; the YAML below them is the configuration of the run.",
            "Both may be edited; the number of nodes stands in both.",
        ),
        run_dir="\n".join(
            [
                "# The code that the runs use" + (", as it was when this script was written." if code else "."),
                *exports,
                f"cd {shlex.quote(str(folder))}",
                "# The configuration of the runs.",
                f"exec 3<<'{END}'",
                *_commented(to_yaml(config)),
                END,
                "# Makes the directory of this run and prints its name; a requeued job finds the one that it has.",
                f'RUN_DIR=$({shlex.join(new_run)} --script "$0" <&3)',
                "exec 3<&-",
            ]
        ),
        command=(
            f'{python} -u -m submitit.core._submit "$RUN_DIR"/{SUBMITIT}'
            if with_submitit
            else f'{python} -m launcher.node.shim "$RUN_DIR"'
        ),
        log=str(here / log),
        environment={"SUBMITIT_EXECUTOR": "slurm"} if with_submitit else {},
    )
    return render(script, template_path(slurm_config(config)))


def _keep_code(config: Config) -> tuple[Config, Path]:
    """Keeps the code as it is now, in the form in which a run keeps it."""
    from launcher.submit.run import snapshot_code

    # Standard output is for the script.
    with contextlib.redirect_stdout(sys.stderr):
        snapshot = snapshot_code(config)
    assert snapshot is not None
    stamp = f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    code = Path(config.output_dir) / RENDERED / stamp
    code.mkdir(parents=True)
    save(code, snapshot)
    return resolve_command_paths(config, snapshot), code


def _commented(text: str) -> list[str]:
    note = "# The request to SLURM: written into the lines above already, so that a change here changes nothing."
    return [line for given in text.splitlines() for line in ([note] if given == "cluster:" else []) + [given]]


def _python_path() -> str:
    """What makes this launcher importable elsewhere, and what else is on the path here."""
    home = launcher_home()
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys(filter(None, [str(home) if home else "", *given])))


if __name__ == "__main__":
    sys.exit(main())

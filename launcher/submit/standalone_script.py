"""A job script that stands for itself: with the run's configuration in it, to be read, edited and submitted by hand."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import sys
import time
from pathlib import Path

from launcher.common.run_dir import SUBMITIT
from launcher.config import to_yaml
from launcher.config.schema import Config
from launcher.snapshot.create import launcher_home
from launcher.snapshot.record import RENDERED, code_location, save
from launcher.snapshot.resolve_paths import resolve_command_paths, resolve_paths
from launcher.submit.job_script import job_script, node_python
from launcher.submit.resources import slurm_config
from launcher.submit.templates import render, template_path

END = "END_OF_CONFIGURATION"


def render_script(config: Config, file: Path | None, *, with_submitit: bool) -> str:
    """The text of a script for ``sbatch``; each submission makes a run directory of its own.

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
            "What SLURM is asked for stands in the #SBATCH lines, what the run does in the YAML below them.",
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
    note = "# What SLURM is asked for: written into the lines above already, so that a change here changes nothing."
    return [line for given in text.splitlines() for line in ([note] if given == "cluster:" else []) + [given]]


def _python_path() -> str:
    """What makes this launcher importable elsewhere, and what else is on the path here."""
    home = launcher_home()
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys(filter(None, [str(home) if home else "", *given])))

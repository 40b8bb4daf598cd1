"""Many runs with the same request to SLURM as one job array: each element is a run with nodes of its own."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launcher.common.errors import ConfigError, SubmissionError
from launcher.common.run_dir import CONFIG, SUBMITIT
from launcher.config import load_run_config
from launcher.config.schema import Config
from launcher.slurm.client import noticed
from launcher.slurm.jobs import JobId
from launcher.snapshot.record import code_location
from launcher.submit.job_script import JobScript, job_script, node_python, shipped, template_path
from launcher.submit.resources import ARRAY, is_heterogeneous, slurm_config
from launcher.submit.slurm import SlurmJob, nothing_left_queued, submission_environment

SAME = ("cluster", "layout.nodes", "layout.spares", "layout.gpus_per_node", "layout.device")
"""Parts of the configuration that the runs of an array have in common: one request is made for all of them."""

_WAITING = "waiting.pkl"


def submit_array(
    run_dirs: Sequence[Path], *, parallel: int | None = None, dependency: str | None = None
) -> list[SlurmJob]:
    """Submits complete run directories as one job array. As with a single run, the caller records the jobs.

    Beside the first of them a directory ``.array-*`` is made, with one link per element. It is read when an element
    starts or is requeued.

    Args:
        run_dirs: one per element, in their order; each as :func:`launcher.common.run_dir.create` made it.
        parallel: elements that may run at the same time; all if None.
        dependency: what the array waits for (``--dependency``), in addition to the configuration's own.

    Returns:
        The jobs ``123_0``, ``123_1``, ..., in the order of ``run_dirs``.

    Raises:
        ConfigError: the runs have different requests, or different code; nothing is queued.
        TypeError: the runs are not for SLURM.
        SubmissionError: ``sbatch`` refused the array; nothing is queued.
    """
    from submitit.core.utils import DelayedSubmission

    from launcher.submit.executor import AgentTask, TemplateExecutor

    first = run_dirs[0]
    config = load_run_config(first)
    if dependency is not None:
        config = with_dependency(config, dependency)
    if is_heterogeneous(slurm_config(config)):
        raise ConfigError(
            ["`cluster.trainer` and `cluster.inference` make a heterogeneous job, which SLURM takes in no array."]
        )
    _check_same(run_dirs)
    folder = first.parent / f".array-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    folder.mkdir()
    for index, run_dir in enumerate(run_dirs):
        (folder / str(index)).symlink_to(run_dir.absolute())
        (run_dir / SUBMITIT).mkdir(exist_ok=True)
        task = DelayedSubmission(AgentTask(run_dir))
        # Without a call for a checkpoint submitit restarts nothing, so its own time limit is not used.
        task.set_timeout(0, 0)
        task.dump(run_dir / SUBMITIT / _WAITING)
    command = f'{node_python(config)} -u -m submitit.core._submit "$RUN_DIR"/{SUBMITIT}'
    script = array_script(config, first, folder, len(run_dirs), parallel, command)
    with submission_environment(first):
        executor = TemplateExecutor(folder, script, _template(config), node_python(config))
        try:
            with nothing_left_queued(folder, script.cluster), noticed("sbatch"):
                job = executor._submit_command(command)
        except SubmissionError:
            shutil.rmtree(folder)
            raise
    cluster = executor.job_id.cluster if executor.job_id is not None else None
    jobs = []
    for index, run_dir in enumerate(run_dirs):
        job_id = f"{job.job_id}_{index}"
        # A node that is earlier than this waits for it.
        (run_dir / SUBMITIT / _WAITING).rename(run_dir / SUBMITIT / f"{job_id}_submitted.pkl")
        shutil.copyfile(job.paths.submission_file, run_dir / "job.sh")
        jobs.append(SlurmJob(str(JobId(job_id, cluster)), run_dir / SUBMITIT / f"{job_id}_0_log.out"))
    return jobs


def with_dependency(config: Config, dependency: str) -> Config:
    """``config`` for a job that waits for others, too."""
    cluster = slurm_config(config)
    own = cluster.sbatch.get("dependency")
    # Jobs are named to the cluster that they are on, so without its name.
    dependency = re.sub(r";[\w.-]+", "", dependency)
    both = f"{own},{dependency}" if own else dependency
    return replace(config, cluster=replace(cluster, sbatch={**cluster.sbatch, "dependency": both}))


def array_script(
    config: Config, first: Path, folder: Path, count: int, parallel: int | None, command: str
) -> JobScript:
    """The script of an array.

    Args:
        config: of any of the runs.
        first: any of the run directories.
        folder: holds one link per element.
        count: elements.
        parallel: elements at the same time; all if None.
        command: what each node runs, as shell text.
    """
    limit = "" if parallel is None else f"%{parallel}"
    place = code_location(first)
    environment = {"SUBMITIT_EXECUTOR": "slurm"}
    if place is not None:
        path = place.python_path.split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(_in_run(entry, first) for entry in path)
    return job_script(
        config,
        run_dir=f'RUN_DIR=$(readlink {shlex.quote(str(folder))}/"$SLURM_ARRAY_TASK_ID")',
        command=command,
        # Through the link into the run directory, and as submitit names the log of the first task.
        log=f"{folder}/%a/{SUBMITIT}/%A_%a_0_log.out",
        environment=environment,
        directory=None if place is None else _in_run(str(place.directory), first),
        options={"array": f"0-{count - 1}{limit}"},
        srun=[f'--output="$RUN_DIR"/{SUBMITIT}/%A_%a_%t_log.out'],
    )


def _template(config: Config) -> Path:
    cluster = slurm_config(config)
    return shipped(ARRAY) if cluster.template is None else template_path(cluster)


def _in_run(path: str, run_dir: Path) -> str:
    """``path`` as shell text that holds for each run of the array."""
    top = str(run_dir.absolute())
    if path == top or path.startswith(f"{top}/"):
        return f'"$RUN_DIR"{shlex.quote(path[len(top) :])}'
    return shlex.quote(path)


def _check_same(run_dirs: Sequence[Path]) -> None:
    first = _common(run_dirs[0])
    for run_dir in run_dirs[1:]:
        for what, text in _common(run_dir).items():
            if text != first[what]:
                raise ConfigError(
                    [
                        f"`{what}` of {run_dir.name} differs from that of {run_dirs[0].name}, but the runs of an array"
                        " make one request. HINT: submit them as jobs of their own."
                    ]
                )


def _common(run_dir: Path) -> dict[str, str]:
    """What must be the same in each run, as text: a thousand configurations would take long to load."""
    parts = dict.fromkeys(SAME, "")
    group = ""
    for line in (run_dir / CONFIG).read_text(encoding="utf-8").splitlines():
        if not line.startswith((" ", "-")):
            group = line.partition(":")[0]
        for name in (group, f"{group}.{line.partition(':')[0].strip()}"):
            if name in parts:
                parts[name] += f"{line}\n"
    place = code_location(run_dir)
    code = "" if place is None else _in_run(str(place.directory), run_dir) + place.python_path
    return {**parts, "snapshot": code.replace(str(run_dir.absolute()), "")}

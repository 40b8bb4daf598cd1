"""What a job script says, as a value: what is asked of SLURM, the environment, and the one ``srun``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher import __version__
from launcher.config.schema import Config, SlurmClusterConfig
from launcher.layout.shape import shape_of

Options = Mapping[str, str | None]
"""Options of ``sbatch`` in their order, without dashes; None for one without a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """Nodes that are asked for in the same way: all of the job's."""

    nodes: int
    options: Options

    @property
    def directives(self) -> list[str]:
        """The options as they stand behind ``#SBATCH``."""
        return [_option(name, value) for name, value in self.options.items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobScript:
    """The values that a template arranges; its fields are the variables of ``sbatch_templates/*.sbatch.j2``."""

    title: tuple[str, ...]
    """What this script is, for people; one line of comment each."""

    components: tuple[Component, ...]
    setup: tuple[str, ...]
    """Shell commands of the site (``cluster.setup``)."""

    environment: Mapping[str, str]
    """Variables to export; the values are quoted for the shell."""

    run_dir: str
    """Shell command that sets ``RUN_DIR``."""

    srun: tuple[str, ...]
    """Arguments of ``srun``, quoted for the shell."""

    command: str
    """Shell text of what each node runs."""

    @property
    def nodes(self) -> int:
        """Nodes of the whole job, and tasks of its step."""
        return sum(component.nodes for component in self.components)


def job_script(
    config: Config,
    *,
    run_dir: str,
    command: str,
    output: str | None,
    title: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    options: Options | None = None,
    srun: Sequence[str] = (),
) -> JobScript:
    """The job script of a run on SLURM; the same for ``sbatch``, ``sbatch --test-only`` and ``launcher render``.

    Args:
        run_dir: shell command that sets ``RUN_DIR``.
        command: shell text of what each node runs.
        output: pattern of the log that the script itself writes; SLURM's own choice if None.
        title: lines of comment at the head, behind the launcher's own.
        environment: variables to export.
        options: further options of ``sbatch``, which win.
        srun: further arguments of ``srun``.
    """
    log = {} if output is None else {"output": output}
    cluster = slurm_config(config)
    return JobScript(
        title=(f"Written by launcher {__version__}: {config.name}, {_sizes(config)}.", *title),
        components=(
            Component(nodes=job_nodes(config), options={**_options(config, cluster), **log, **(options or {})}),
        ),
        setup=tuple(cluster.setup),
        environment={name: shlex.quote(value) for name, value in (environment or {}).items()},
        run_dir=run_dir,
        srun=tuple(shlex.quote(word) for word in [*srun, *_srun(cluster)]),
        command=command,
    )


def slurm_config(config: Config) -> SlurmClusterConfig:
    """The part of ``config`` that is SLURM's.

    Raises:
        TypeError: the run is not for SLURM.
    """
    if not isinstance(config.cluster, SlurmClusterConfig):
        raise TypeError(f"not a SLURM cluster: {config.cluster.kind}")
    return config.cluster


def job_nodes(config: Config) -> int:
    """Nodes that SLURM is asked for."""
    return config.layout.nodes


def set_run_dir(run_dir: Path) -> str:
    """Shell command that sets ``RUN_DIR`` to a directory that exists."""
    return f"RUN_DIR={shlex.quote(str(run_dir))}"


def _sizes(config: Config) -> str:
    shape = shape_of(config)
    trainers, ranks = shape.trainer_nodes, shape.trainer_nodes * shape.workers_per_node
    return (
        f"{job_nodes(config)} nodes, the first {trainers} of which train ({ranks} ranks);"
        f" {shape.replicas} engines on the last {shape.engine_nodes}"
    )


def _options(config: Config, cluster: SlurmClusterConfig) -> dict[str, str | None]:
    """``#SBATCH`` options; what is null in the configuration is SLURM's to choose."""
    options: dict[str, str | None] = {
        "job-name": config.name,
        "nodes": str(job_nodes(config)),
        "ntasks-per-node": "1",
    }
    for name in ("time", "partition", "account", "qos", "constraint", "reservation", "nodelist", "exclude", "mem"):
        if (value := getattr(cluster, name)) is not None:
            options[name] = value
    if cluster.cpus_per_task is not None:
        options["cpus-per-task"] = str(cluster.cpus_per_task)
    options |= _gpus(config, cluster)
    if cluster.exclusive:
        options["exclusive"] = None
    # What follows a lost node is the launcher's to decide, not SLURM's.
    options["no-kill"] = None
    options["requeue" if cluster.requeue else "no-requeue"] = None
    # To the tasks, not to this script, which would die of it.
    options["signal"] = f"USR2@{cluster.signal_s}"
    # A requeued job goes on in the same log.
    options["open-mode"] = "append"
    for key, value in cluster.sbatch.items():
        options[str(key).replace("_", "-")] = None if value is True else str(value)
    return options


def _gpus(config: Config, cluster: SlurmClusterConfig) -> dict[str, str | None]:
    gpus = config.layout.gpus_per_node
    if config.layout.device != "cuda" or cluster.gpus == "none":
        return {}
    request = f"{cluster.gpu_type}:{gpus}" if cluster.gpu_type else str(gpus)
    return {"gres": f"gpu:{request}"} if cluster.gpus == "gres" else {"gpus-per-node": request}


def _srun(cluster: SlurmClusterConfig) -> list[str]:
    arguments = [
        # A node that ends badly, or is lost, does not end the others: the run's own leases decide what follows.
        "--kill-on-bad-exit=0",
        "--no-kill",
        # The token and the path of the package travel in the environment, whatever a site makes the default.
        "--export=ALL",
        "--unbuffered",
    ]
    if cluster.cpus_per_task is not None:
        # From 22.05 on srun does not take it over from the job.
        arguments.append(f"--cpus-per-task={cluster.cpus_per_task}")
    if cluster.container is not None:
        arguments.append(f"--container-image={cluster.container}")
    if cluster.container_mounts is not None:
        arguments.append(f"--container-mounts={cluster.container_mounts}")
    return [*arguments, *cluster.srun_args]


def _option(name: str, value: str | None) -> str:
    dashes = "-" if len(name) == 1 else "--"
    return f"{dashes}{name}" if value is None else f"{dashes}{name}={shlex.quote(value)}"

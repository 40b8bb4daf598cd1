"""What a job script says, as a value: what is asked of SLURM, the environment, and the one ``srun``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher import __version__
from launcher.common.text import counted
from launcher.config.schema import Config, SlurmClusterConfig
from launcher.layout.shape import shape_of
from launcher.submit.resources import CLUSTER_OPTIONS, Options, request, requests, slurm_config


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """Nodes that are asked for in the same way: all of the job's, or those of one role in a heterogeneous job."""

    what: str
    """What they are for, for people."""

    nodes: int
    options: Options

    @property
    def directives(self) -> list[str]:
        """The options as they stand behind ``#SBATCH``."""
        return [_option(name, value) for name, value in self.options.items()]

    @property
    def srun(self) -> list[str]:
        """Arguments of ``srun`` for these nodes alone."""
        cpus = self.options.get("cpus-per-task")
        # From 22.05 on srun does not take it over from the job.
        return [] if cpus is None else [f"--cpus-per-task={cpus}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobScript:
    """The values that a template arranges; its fields are the variables of ``sbatch_templates/*.sbatch.j2``.

    Whatever is shell text is quoted as far as it needs to be.
    """

    title: tuple[str, ...]
    """What this script is, for people; one line of comment each."""

    components: tuple[Component, ...]
    """One; in a heterogeneous job one for each kind of nodes, in the order of their ranks."""

    setup: tuple[str, ...]
    """Shell commands of the site (``cluster.setup``)."""

    run_dir: str
    """Shell commands that set ``RUN_DIR``."""

    environment: Mapping[str, str]
    """Variables to export, as shell text; they may refer to ``RUN_DIR``."""

    directory: str | None
    """Working directory of the nodes, as shell text; where ``sbatch`` starts the script if None."""

    srun: tuple[str, ...]
    """Arguments of ``srun``, as shell text."""

    command: str
    """What each node runs, as shell text."""

    @property
    def cluster(self) -> str | None:
        """The cluster, or clusters, that the job is for (``--clusters``), if any is named."""
        options = self.components[0].options
        return next((options[name] for name in CLUSTER_OPTIONS if name in options), None)

    @property
    def nodes(self) -> int:
        """Nodes of the whole job, and tasks of its step."""
        return sum(component.nodes for component in self.components)


def job_script(
    config: Config,
    *,
    run_dir: str,
    command: str,
    log: str | None = None,
    title: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    directory: str | None = None,
    options: Options | None = None,
    srun: Sequence[str] = (),
) -> JobScript:
    """The job script of a run on SLURM; the same for ``sbatch``, ``sbatch --test-only`` and ``launcher render``.

    Args:
        run_dir: shell commands that set ``RUN_DIR``.
        command: what each node runs, as shell text.
        log: pattern of the log that the script itself writes; SLURM's own choice if None.
        title: lines of comment at the head, behind the launcher's own.
        environment: variables to export, as shell text.
        directory: working directory, as shell text.
        options: further options of ``sbatch``, which win.
        srun: further arguments of ``srun``, as shell text.
    """
    cluster = slurm_config(config)
    asked = requests(config)
    first = {**({} if log is None else {"output": log}), **(options or {})}
    return JobScript(
        title=(f"Written by launcher {__version__}: {config.name}, {_sizes(config)}.", *title),
        components=tuple(
            Component(
                what=nodes.what,
                nodes=nodes.nodes,
                # The first component speaks for the job.
                options={**request(config, nodes), **(first if index == 0 else {})},
            )
            for index, nodes in enumerate(asked)
        ),
        setup=tuple(cluster.setup),
        run_dir=run_dir,
        environment=environment or {},
        directory=directory,
        srun=(*srun, *_srun(config, cluster)),
        command=command,
    )


def set_run_dir(run_dir: Path) -> str:
    """Shell command that sets ``RUN_DIR`` to a directory that exists."""
    return f"RUN_DIR={shlex.quote(str(run_dir))}"


def node_python(config: Config) -> str:
    """Shell text of the interpreter on a node; in a container that SLURM does not start itself, with what starts it."""
    from launcher.submit.containers import apptainer

    cluster = slurm_config(config)
    if cluster.container is None:
        import sys

        return cluster.python or shlex.quote(sys.executable)
    return " ".join([*map(shlex.quote, apptainer(config)), cluster.python or "python3"])


def _sizes(config: Config) -> str:
    shape = shape_of(config)
    ranks = counted(shape.trainer_nodes * shape.workers_per_node, "trainer rank")
    engines = counted(shape.replicas, "engine")
    if shape.local_mode:
        return f"{counted(shape.nodes, 'node')} with {ranks} and {engines}"
    return f"{counted(shape.trainer_nodes, 'node')} with {ranks}, {shape.engine_nodes} with {engines}"


def _srun(config: Config, cluster: SlurmClusterConfig) -> list[str]:
    from launcher.submit.containers import pyxis

    arguments = [
        # A node that ends badly, or is lost, does not end the others: the run's own leases decide what follows.
        "--kill-on-bad-exit=0",
        "--no-kill",
        # The token and the path of the package travel in the environment, whatever a site makes the default.
        "--export=ALL",
        "--unbuffered",
        # The ranks of a node are started by its agent: what an MPI plugin sets for the one task would be wrong for all.
        "--mpi=none",
    ]
    return [shlex.quote(word) for word in [*arguments, *pyxis(config), *cluster.srun_args]]


def _option(name: str, value: str | None) -> str:
    dashes = "-" if len(name) == 1 else "--"
    return f"{dashes}{name}" if value is None else f"{dashes}{name}={shlex.quote(value)}"

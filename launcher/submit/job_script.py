"""A job script as a value: SLURM options, environment and the one ``srun``; and the template that renders it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from launcher import __version__
from launcher.common.errors import ConfigError
from launcher.common.paths import sbatch_templates_dir
from launcher.common.text import counted
from launcher.config.schema import Config, SlurmClusterConfig
from launcher.layout.shape import shape_of
from launcher.slurm.client import REQUEUERS
from launcher.submit.resources import (
    CLUSTER_OPTIONS,
    HETEROGENEOUS,
    Nodes,
    Options,
    is_heterogeneous,
    request,
    requests,
    slurm_config,
)

if TYPE_CHECKING:
    import jinja2


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """Nodes with the same request: all of the job's, or those of one role in a heterogeneous job."""

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

    Shell text is quoted where it needs to be.
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

    outside: tuple[str, ...] = ()
    """Arguments of ``srun``, as shell text, that start a program outside of the image on the nodes that stand in for
    the job script's own; none without an image, or without such nodes."""

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
                # The options of the first component are the job's.
                options={**request(config, nodes), **(first if index == 0 else {})},
            )
            for index, nodes in enumerate(asked)
        ),
        setup=tuple(cluster.setup),
        run_dir=run_dir,
        environment=environment or {},
        directory=directory,
        srun=(*srun, *_srun(config, cluster)),
        outside=() if cluster.container is None else _outside(asked),
        command=command,
    )


def set_run_dir(run_dir: Path) -> str:
    """Shell command that sets ``RUN_DIR`` to a directory that exists."""
    return f"RUN_DIR={shlex.quote(str(run_dir))}"


def node_python(config: Config) -> str:
    """Shell text of the interpreter on a node; in a container that SLURM does not start itself, with what starts it."""

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

    arguments = [
        # A node that ends badly, or is lost, does not end the others: the run's own leases decide what follows.
        "--kill-on-bad-exit=0",
        "--no-kill",
        # The token and the path of the package travel in the environment, also where a site has another default.
        "--export=ALL",
        "--unbuffered",
        # The ranks of a node are started by its agent: what an MPI plugin sets for the one task would be wrong for all.
        "--mpi=none",
    ]
    return [shlex.quote(word) for word in [*arguments, *pyxis(config), *cluster.srun_args]]


def _outside(asked: Sequence[Nodes]) -> tuple[str, ...]:
    """On nodes after the first one, as many as may have to requeue the job; it takes nothing away from the run."""
    own = min(asked[0].nodes, REQUEUERS) - 1
    if own == 0 and len(asked) == 1:
        return ()
    nodes = own or min(asked[1].nodes, REQUEUERS - 1)
    where = [*(["--relative=1"] if own else []), *([f"--het-group={0 if own else 1}"] if len(asked) > 1 else [])]
    size = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--cpus-per-task=1"]
    shared = ["--overlap", "--gres=none", "--mem=0", "--no-kill", "--kill-on-bad-exit=0"]
    return (*where, *size, *shared, "--export=ALL", "--mpi=none", "--output=/dev/null")


def _option(name: str, value: str | None) -> str:
    dashes = "-" if len(name) == 1 else "--"
    return f"{dashes}{name}" if value is None else f"{dashes}{name}={shlex.quote(value)}"


def pyxis(config: Config) -> list[str]:
    """Arguments of ``srun``; none without a container, or with another runtime."""
    cluster = slurm_config(config)
    if cluster.container is None or cluster.container_runtime != "pyxis":
        return []
    return [f"--container-image={cluster.container}", f"--container-mounts={_container_mounts(config)}"]


def apptainer(config: Config) -> list[str]:
    """Words before the command; none without a container, or with another runtime."""
    cluster = slurm_config(config)
    if cluster.container is None or cluster.container_runtime != "apptainer":
        return []
    nv = ["--nv"] if config.layout.device == "cuda" else []
    return ["apptainer", "exec", *nv, "--bind", _container_mounts(config), cluster.container]


def _container_mounts(config: Config) -> str:
    """``FROM:TO,...``: what a run reads and writes is in the container where it is outside; then the site's own."""
    folders = list(dict.fromkeys(path.absolute() for path in _mounted_folders(config)))
    outer = [path for path in folders if not any(parent in folders for parent in path.parents)]
    return ",".join([*(f"{path}:{path}" for path in outer), *filter(None, [slurm_config(config).container_mounts])])


def _mounted_folders(config: Config) -> Iterator[Path]:
    from launcher.snapshot.create import launcher_home

    yield Path(config.output_dir)
    yield Path.cwd()
    if (home := launcher_home()) is not None:
        yield home
    if config.model.path is not None:
        yield Path(config.model.path)


SUFFIX = ".sbatch.j2"


def template_names() -> list[str]:
    """The templates that come with the launcher."""
    return sorted(path.name.removesuffix(SUFFIX) for path in sbatch_templates_dir().glob(f"*{SUFFIX}"))


def template_path(cluster: SlurmClusterConfig) -> Path:
    """The template that a configuration chooses: a shipped one by its name, or a file of the user's own."""
    chosen = cluster.template
    if chosen is None:
        chosen = HETEROGENEOUS if is_heterogeneous(cluster) else "plain" if cluster.container is None else "container"
    return shipped(chosen) if chosen in template_names() else Path(chosen)


def shipped(name: str) -> Path:
    """A template that comes with the launcher."""
    return sbatch_templates_dir() / f"{name}{SUFFIX}"


def render(script: JobScript, template: Path) -> str:
    """The text of a job script.

    Args:
        template: a Jinja file; it may extend a shipped one by its file name.

    Raises:
        ConfigError: it cannot be read, is not well formed, or names a value that does not exist.
    """
    import jinja2

    values = {field.name: getattr(script, field.name) for field in fields(script)} | {"nodes": script.nodes}
    try:
        return _jinja_environment(template.absolute().parent).get_template(template.name).render(values)
    except jinja2.TemplateNotFound as error:
        raise _problem(template, f"there is no file {error.name}", f"the templates are {_names()}") from error
    except jinja2.TemplateSyntaxError as error:
        where = f"{Path(error.filename or template).name}, line {error.lineno}: {error.message}"
        raise _problem(template, where, "see the shipped templates for examples") from error
    except jinja2.UndefinedError as error:
        raise _problem(template, str(error.message), f"a template knows {', '.join(values)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise _problem(template, str(error), "name a file that can be read") from error


@cache
def _jinja_environment(folder: Path) -> jinja2.Environment:
    """The same one for each folder: it keeps what it has compiled, until the file changes."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([str(folder), str(sbatch_templates_dir())]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # The output is a shell script.
        autoescape=False,
    )


def _names() -> str:
    return ", ".join(template_names())


def _problem(template: Path, what: str, hint: str) -> ConfigError:
    return ConfigError([f"`cluster.template` ({template}) cannot be filled in: {what}. HINT: {hint}."])

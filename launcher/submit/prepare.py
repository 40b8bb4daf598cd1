"""From the configuration that a person gave to the one that a cluster gets: steps from one value to the next.

Nothing is created or queued here. :func:`prepared` is what ``launcher plan`` shows, :func:`ready` what is submitted.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.common.text import duration
from launcher.config.schema import Config, SlurmClusterConfig
from launcher.config.secrets import unset_secrets
from launcher.layout.shape import shape_of
from launcher.preflight.bad_nodes import BadNodeCache, BadNodeEntry, default_bad_node_dir
from launcher.slurm.client import CALL_TIMEOUT_S, ControllerAway, output_of
from launcher.slurm.jobs import cluster_option
from launcher.slurm.nodelist import expand_nodelist
from launcher.slurm.site import LoginDefaults, NodeType, cluster_name, cpus_per_node, node_types, read_login_defaults
from launcher.submit.cluster import Cluster, LocalCluster
from launcher.submit.resources import chosen_cluster, requests

_SETTINGS = ("partition", "account", "qos", "time", "constraint", "reservation")
"""Options of ``sbatch`` that are settings of ``cluster`` under the same name, null by default."""

CPU_OPTIONS = frozenset(
    {
        *("cpus-per-gpu", "cores-per-socket", "sockets-per-node", "threads-per-core", "hint", "core-spec"),
        *("thread-spec", "mem-per-cpu", "extra-node-info", "B", "S"),
    }
)
"""Options of ``cluster.sbatch`` about CPUs; with one of them no CPUs are requested by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A configuration as it is submitted."""

    config: Config
    notes: tuple[str, ...] = ()
    """What a person should know about the difference from what they gave."""

    without_cpus: Config | None = None
    """The same without the number of CPUs that the launcher has chosen; None if it has chosen none."""


def prepared(
    given: Config,
    environ: Mapping[str, str] = os.environ,
    *,
    is_submission: bool = False,
    timeout_s: float = CALL_TIMEOUT_S,
) -> Prepared:
    """``given`` with the defaults of the login shell, without nodes that are known to be bad, and with CPUs.

    Args:
        is_submission: whether bad nodes are left out, for which SLURM must be within reach.
        timeout_s: longest wait for SLURM's list of its nodes; without it no CPUs are requested.
    """
    config, notes = with_login_defaults(given, read_login_defaults(environ))
    if is_submission:
        config, more = leave_out_bad_nodes(config)
        notes += more
    types: list[NodeType] = []
    if needs_cpus(config) and shutil.which("sinfo") is not None:
        try:
            types = node_types(chosen_cluster(config), timeout_s)
        except ControllerAway as error:
            notes.append(f"no CPUs are requested, as nothing is known of the nodes: {error}")
    with_cpus = with_default_cpus(config, types)
    return Prepared(config=with_cpus, notes=tuple(notes), without_cpus=config if with_cpus != config else None)


def ready(given: Config) -> tuple[Prepared, Cluster, list[str]]:
    """What is submitted, the cluster that takes it, and the problems that only this machine or the cluster knows."""
    result = prepared(given, is_submission=True)
    cluster = cluster_of(result.config)
    problems = [*unset_secrets(result.config), *cluster.check()]
    if problems and result.without_cpus is not None:
        # A limit that `sinfo` does not show: what was refused may be the number of CPUs.
        other = cluster_of(result.without_cpus)
        if not unset_secrets(result.config) and not other.check():
            note = "no CPUs are requested: SLURM refuses the number that fits the nodes (`cluster.cpus_per_task`)"
            return Prepared(config=result.without_cpus, notes=(*result.notes, note)), other, []
    return result, cluster, problems


def cluster_of(config: Config) -> Cluster:
    """The cluster that ``config`` is for."""
    if config.cluster.kind == "slurm":
        from launcher.submit.slurm import SbatchCluster

        return SbatchCluster(config)
    return LocalCluster(config)


def with_login_defaults(config: Config, defaults: LoginDefaults) -> tuple[Config, list[str]]:
    """``config`` with the login shell's defaults for settings that are null, and notes about them."""
    cluster = config.cluster
    if not isinstance(cluster, SlurmClusterConfig):
        return config, []
    notes: list[str] = []
    if defaults.enclosing_job is not None:
        if defaults.unused:
            names = ", ".join(defaults.unused)
            notes.append(f"{names}: not used, as this shell is part of job {defaults.enclosing_job}")
        return config, notes
    changed: dict[str, object] = {}
    sbatch = dict(cluster.sbatch)
    for option, (variable, value) in defaults.options.items():
        if option in _SETTINGS:
            if getattr(cluster, option) is None:
                changed[option] = value
                notes.append(f"`cluster.{option}` is {value}, from {variable}")
        elif option == "exclusive" and value is None:
            if not cluster.exclusive:
                changed["exclusive"] = True
                notes.append(f"`cluster.exclusive` is true, from {variable}")
        elif option not in sbatch and option.replace("-", "_") not in sbatch:
            sbatch[option] = True if value is None else value
            notes.append(f"`cluster.sbatch.{option}` is {sbatch[option]}, from {variable}")
    if defaults.unused:
        notes.append(f"{', '.join(defaults.unused)}: not used; the settings of `cluster` decide these options")
    return replace(config, cluster=replace(cluster, **{**changed, "sbatch": sbatch})), notes  # type: ignore[arg-type]


def needs_cpus(config: Config) -> bool:
    """Whether no setting decides how many CPUs the job gets, so that SLURM would give each node's task one."""
    cluster = config.cluster
    if not isinstance(cluster, SlurmClusterConfig):
        return False
    if CPU_OPTIONS & {str(name).replace("_", "-") for name in cluster.sbatch}:
        return False
    return any(nodes.cluster.cpus_per_task is None for nodes in requests(config))


def with_default_cpus(config: Config, types: list[NodeType]) -> Config:
    """``config`` with ``cpus_per_task`` where it is null, if ``types`` describe the nodes."""
    if not isinstance(config.cluster, SlurmClusterConfig) or not needs_cpus(config):
        return config
    numbers = []
    for nodes in requests(config):
        cluster = nodes.cluster
        takes_gpus = config.layout.device == "cuda" and cluster.gpu_request != "none"
        number = cluster.cpus_per_task or cpus_per_node(
            types,
            cluster.partition,
            gpus=config.layout.gpus_per_node if takes_gpus else 0,
            gpu_type=cluster.gpu_type,
            processes=processes_per_node(config),
            whole=cluster.exclusive,
        )
        numbers.append(number)
    if len(numbers) == 1:
        return replace(config, cluster=replace(config.cluster, cpus_per_task=numbers[0]))
    trainer, inference = (
        replace(nodes, cpus_per_task=number)
        for nodes, number in zip((config.cluster.trainer, config.cluster.inference), numbers, strict=True)
    )
    return replace(config, cluster=replace(config.cluster, trainer=trainer, inference=inference))


def processes_per_node(config: Config) -> int:
    """Ranks and processes of engines on the node that has most of them."""
    shape = shape_of(config)
    ranks = shape.workers_per_node
    engines = min(shape.engine_size, shape.engine_gpus) * max(shape.replicas_per_node, 1)
    return ranks + engines if shape.local_mode else max(ranks, engines)


def cpu_line(config: Config) -> str | None:
    """One line about the CPUs of the processes on a node; None for a run that is not for SLURM."""
    if not isinstance(config.cluster, SlurmClusterConfig):
        return None
    processes = processes_per_node(config)
    parts = []
    for nodes in requests(config):
        cpus = nodes.cluster.cpus_per_task
        if cpus is None:
            parts.append(f"{nodes.what}: as many as SLURM gives by itself, often one (set `cluster.cpus_per_task`)")
        else:
            parts.append(
                f"{nodes.what}: {cpus} per node, {cpus / processes:.3g} for each of up to {processes} processes"
            )
    return "CPUs of the " + "; of the ".join(parts)


def leave_out_bad_nodes(config: Config) -> tuple[Config, list[str]]:
    """The configuration to submit, and notes about it.

    ``cluster.exclude`` gets the remembered nodes of this cluster on top of the user's own, ``preflight.bad_node_dir``
    the directory that the job is to write into. A node that ``cluster.nodelist`` asks for by name is left in.
    """
    cluster, settings = config.cluster, config.preflight
    if not isinstance(cluster, SlurmClusterConfig) or settings.action == "off" or settings.bad_node_ttl_s <= 0:
        return config, []
    root = (Path(settings.bad_node_dir) if settings.bad_node_dir else default_bad_node_dir()).absolute()
    config = replace(config, preflight=replace(settings, bad_node_dir=str(root)))
    memory = BadNodeCache(root)
    if not memory.entries():
        return config, []
    option = cluster_option(chosen_cluster(config))
    try:
        name = cluster_name(chosen_cluster(config))
        wanted = set(expand_nodelist(cluster.nodelist)) if cluster.nodelist else set()
        # The name of a node that is no more would make SLURM refuse the whole job.
        known = set(output_of(["sinfo", "--noheader", "--Node", *option, "--format=%N"]).split())
    except (ControllerAway, ValueError) as error:
        return config, [f"bad nodes of earlier runs are not left out: {error}"]
    bad = [entry for entry in memory.entries(name) if entry.node in known]
    left_out = [entry for entry in bad if entry.node not in wanted]
    notes = [_sentence(entry) for entry in left_out]
    notes += [f"{e.node} was bad ({e.reason}), but `cluster.nodelist` asks for it" for e in bad if e.node in wanted]
    if left_out:
        names = ",".join(entry.node for entry in left_out)
        exclude = f"{cluster.exclude},{names}" if cluster.exclude else names
        config = replace(config, cluster=replace(cluster, exclude=exclude))
    return config, notes


def _sentence(entry: BadNodeEntry) -> str:
    left = duration(max(0.0, entry.expires - time.time()))
    return (
        f"leaving out {entry.node} for another {left}: {entry.reason}."
        f" `launcher nodes forget {entry.node}` uses it again."
    )

"""The request to SLURM: how many nodes of which kind, as options of ``sbatch``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.config.schema import Config, NodesConfig, SlurmClusterConfig

Options = Mapping[str, str | None]
"""Options of ``sbatch`` in their order, without dashes; None for one without a value."""

CLUSTER_OPTIONS = ("clusters", "cluster", "M")
"""Names of the option of ``sbatch`` that chooses the cluster."""

DEFAULT_TIME = "04:00:00"
PARTITION_TIME = "partition"
"""As ``cluster.time``: the partition's own limit."""

_WORDS = ("partition", "account", "qos", "constraint", "reservation", "nodelist", "exclude", "mem")


HETEROGENEOUS, ARRAY = "heterogeneous", "array"
"""Templates with a meaning of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """A number of nodes that are requested with the same options."""

    what: str
    nodes: int
    cluster: SlurmClusterConfig


def slurm_config(config: Config) -> SlurmClusterConfig:
    """The part of ``config`` that is SLURM's.

    Raises:
        TypeError: the run is not for SLURM.
    """
    if not isinstance(config.cluster, SlurmClusterConfig):
        raise TypeError(f"not a SLURM cluster: {config.cluster.kind}")
    return config.cluster


def time_limit(cluster: SlurmClusterConfig) -> str | None:
    """The job's time limit; None for the partition's own."""
    if cluster.time is None:
        return DEFAULT_TIME
    return None if cluster.time == PARTITION_TIME else cluster.time


def chosen_cluster(config: Config) -> str | None:
    """The cluster that ``cluster.sbatch`` names; None without one, or with several, of which SLURM chooses."""
    names = named_clusters(config)
    return names[0] if len(names) == 1 and names != ["all"] else None


def named_clusters(config: Config) -> list[str]:
    """The clusters that ``cluster.sbatch`` names, each of which may have the job."""
    sbatch = slurm_config(config).sbatch
    name = next((str(sbatch[option]) for option in CLUSTER_OPTIONS if option in sbatch), "")
    return [part for part in name.split(",") if part]


def is_heterogeneous(cluster: SlurmClusterConfig) -> bool:
    """Whether the nodes of the two roles are requested separately."""
    return cluster.template == HETEROGENEOUS or cluster.trainer != NodesConfig() or cluster.inference != NodesConfig()


def requests(config: Config) -> list[Nodes]:
    """All nodes of the job, in the order of their ranks: this is where their number is decided."""
    cluster, layout = slurm_config(config), config.layout
    if not is_heterogeneous(cluster):
        return [Nodes(what="nodes", nodes=layout.nodes + layout.spares, cluster=cluster)]
    trainer, inference = _for(cluster, cluster.trainer), _for(cluster, cluster.inference)
    return [
        Nodes(what="nodes that train", nodes=layout.nodes - layout.inference_nodes, cluster=trainer),
        # Spares come last, so they are of this kind.
        Nodes(what="nodes that run engines", nodes=layout.inference_nodes + layout.spares, cluster=inference),
    ]


def request(config: Config, asked: Nodes) -> Options:
    """``#SBATCH`` options; what is null in the configuration is SLURM's to choose."""
    cluster = asked.cluster
    options: dict[str, str | None] = {
        "job-name": config.name,
        "nodes": str(asked.nodes),
        "ntasks-per-node": "1",
    }
    if (limit := time_limit(cluster)) is not None:
        options["time"] = limit
    options |= {name: value for name in _WORDS if (value := getattr(cluster, name)) is not None}
    if cluster.cpus_per_task is not None:
        options["cpus-per-task"] = str(cluster.cpus_per_task)
    options |= _gpus(config, cluster)
    if cluster.exclusive:
        options["exclusive"] = None
    # What follows a lost node is the launcher's to decide, not SLURM's.
    options["no-kill"] = None
    options["requeue" if cluster.requeue else "no-requeue"] = None
    # To the tasks, not to the script, which would die of it.
    options["signal"] = f"USR2@{cluster.signal_s}"
    # A requeued job appends to the same log.
    options["open-mode"] = "append"
    for key, value in cluster.sbatch.items():
        options[str(key).replace("_", "-")] = None if value is True else str(value)
    return options


def _for(cluster: SlurmClusterConfig, nodes: NodesConfig) -> SlurmClusterConfig:
    """The settings of ``cluster``, replaced by those of these nodes where they are set."""
    own = {field.name: getattr(nodes, field.name) for field in dataclasses.fields(nodes)}
    return dataclasses.replace(cluster, **{name: value for name, value in own.items() if value is not None})


def _gpus(config: Config, cluster: SlurmClusterConfig) -> dict[str, str | None]:
    gpus = config.layout.gpus_per_node
    if config.layout.device != "cuda" or cluster.gpu_request == "none":
        return {}
    request = f"{cluster.gpu_type}:{gpus}" if cluster.gpu_type else str(gpus)
    return {"gres": f"gpu:{request}"} if cluster.gpu_request == "gres" else {"gpus-per-node": request}

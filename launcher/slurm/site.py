"""A SLURM cluster's own figures, and the defaults for ``sbatch`` that its login shells export."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.slurm.client import CALL_TIMEOUT_S, ControllerAway, columns, output_of
from launcher.slurm.jobs import cluster_option

DEFAULT_MAX_ARRAY_SIZE = 1001
_FIELDS = {"Partition": 80, "CPUs": 16, "MaxCPUsPerNode": 16, "Gres": 400}
_GRES = re.compile(r"gpu(?::([A-Za-z][^:,()]*))?:(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeType:
    """Nodes of one partition that are alike."""

    partition: str
    is_default: bool
    """Whether jobs that name no partition go there."""

    cpus: int
    """CPUs that a job may have on each of them."""

    gpus: tuple[tuple[str, int], ...]
    """Type and number of their GPUs; the type is empty where the site names none."""


def cluster_name(cluster: str | None = None) -> str:
    """The name of the cluster that ``sbatch`` would submit to.

    Raises:
        ControllerAway: the controller does not answer, or names none.
    """
    name = _setting("ClusterName", cluster)
    if name is None:
        raise ControllerAway("`scontrol show config` names no cluster.")
    return name


def max_array_size(cluster: str | None = None) -> int:
    """How many elements an array may have whose indices start at 0.

    Raises:
        ControllerAway: the controller does not answer.
    """
    # It is the bound of the indices, which themselves stay below it.
    text = _setting("MaxArraySize", cluster)
    return int(text) if text is not None and text.isdecimal() else DEFAULT_MAX_ARRAY_SIZE


def node_types(cluster: str | None = None, timeout_s: float = CALL_TIMEOUT_S) -> list[NodeType]:
    """The nodes of all partitions, one entry for those that are alike.

    Raises:
        ControllerAway: the controller does not answer.
    """
    fields = ",".join(f"{name}:{width}" for name, width in _FIELDS.items())
    return read_node_types(
        output_of(["sinfo", "--noheader", *cluster_option(cluster), f"--Format={fields}"], timeout_s)
    )


def read_node_types(text: str) -> list[NodeType]:
    """:func:`node_types` from the output of ``sinfo``."""
    found = []
    for line in text.splitlines():
        partition, cpus, most, gres = columns(line, _FIELDS.values())
        # Of nodes that differ, `sinfo` gives the smallest number and a plus.
        if not (count := cpus.removesuffix("+")).isdecimal():
            continue
        found.append(
            NodeType(
                partition=partition.removesuffix("*"),
                is_default=partition.endswith("*"),
                cpus=min(int(count), int(most)) if most.isdecimal() else int(count),
                gpus=tuple((kind, int(number)) for kind, number in _GRES.findall(gres)),
            )
        )
    return found


def cpus_per_node(
    types: Sequence[NodeType], partition: str | None, *, gpus: int, gpu_type: str | None, processes: int, whole: bool
) -> int | None:
    """How many CPUs of each node a job should have; None where nothing is known of the nodes.

    A job that takes some of a node's GPUs takes the same share of its CPUs.

    Args:
        partition: names separated by commas; the default partition if None.
        gpus: that the job takes on each node; 0 for none.
        processes: that run on each node; without GPUs each takes :data:`CPUS_PER_PROCESS`.
        whole: the job takes whole nodes.
    """
    names = set(partition.split(",")) if partition else set()
    shares = []
    for nodes in types:
        if nodes.partition not in names if names else not nodes.is_default:
            continue
        there = sum(number for kind, number in nodes.gpus if gpu_type is None or kind == gpu_type)
        if gpus > there:
            continue
        share = nodes.cpus * gpus // there if gpus else CPUS_PER_PROCESS * processes
        shares.append(nodes.cpus if whole else min(share, nodes.cpus))
    return max(min(shares), 1) if shares else None


CPUS_PER_PROCESS = 4
"""Enough for a process that computes on one of them, and its threads that read, tokenize and send."""


def _setting(name: str, cluster: str | None) -> str | None:
    text = output_of(["scontrol", *cluster_option(cluster), "show", "config"])
    found = re.search(rf"^{name}\s*=\s*(\S+)", text, re.MULTILINE)
    return found.group(1) if found is not None else None


OPTIONS = {
    "SBATCH_PARTITION": "partition",
    "SBATCH_ACCOUNT": "account",
    "SBATCH_QOS": "qos",
    "SBATCH_TIMELIMIT": "time",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_EXCLUSIVE": "exclusive",
    "SBATCH_CLUSTERS": "clusters",
    "SLURM_CLUSTERS": "clusters",
    "SBATCH_WCKEY": "wckey",
    "SBATCH_NETWORK": "network",
    "SBATCH_ACCTG_FREQ": "acctg-freq",
    "SBATCH_PROFILE": "profile",
    "SBATCH_CORE_SPEC": "core-spec",
    "SBATCH_THREAD_SPEC": "thread-spec",
    "SBATCH_GRES_FLAGS": "gres-flags",
    "SBATCH_GPU_FREQ": "gpu-freq",
    "SBATCH_DELAY_BOOT": "delay-boot",
    "SBATCH_USE_MIN_NODES": "use-min-nodes",
    "SBATCH_SPREAD_JOB": "spread-job",
    "SBATCH_WAIT_ALL_NODES": "wait-all-nodes",
}
"""Variables that are used, with the option of ``sbatch`` that each stands for; of two for the same, the first wins."""

FLAGS = frozenset({"exclusive", "use-min-nodes", "spread-job"})
"""Options that need no value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginDefaults:
    """Options of ``sbatch`` by the environment of a submission."""

    options: Mapping[str, tuple[str, str | None]]
    """By option: the variable that it comes from, and its value; None for one without a value."""

    unused: tuple[str, ...]
    """Further ``SBATCH_*`` variables, for options that the launcher decides by itself."""

    enclosing_job: str | None = None
    """The job that the environment belongs to. Its variables do not hold for another job, so none is used."""


def read_login_defaults(environ: Mapping[str, str]) -> LoginDefaults:
    """The defaults in ``environ``; inside of a job (``salloc``, ``srun --pty``, an array's task) there are none."""
    job = environ.get("SLURM_JOB_ID") or environ.get("SLURM_JOBID")
    known = {name: environ[name] for name in OPTIONS if environ.get(name)}
    others = sorted(name for name in environ if name.startswith("SBATCH_") and name not in OPTIONS)
    if job:
        unused = [name for name in known if name.startswith("SBATCH_")]
        return LoginDefaults(options={}, unused=tuple(sorted([*unused, *others])), enclosing_job=job)
    options: dict[str, tuple[str, str | None]] = {}
    for name, value in known.items():
        option = OPTIONS[name]
        is_bare = option in FLAGS and value.lower() in ("1", "yes", "true", "exclusive")
        if option in FLAGS and not is_bare:
            # `SBATCH_EXCLUSIVE=user` and the like: nodes shared in some way.
            others.append(name)
        else:
            options.setdefault(option, (name, None if is_bare else value))
    return LoginDefaults(options=options, unused=tuple(sorted(others)))

"""What a test cluster consists of: the value that is rendered, started and checked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ClusterError(Exception):
    """The cluster did not start, or does not do what it was asked."""


class Isolation(StrEnum):
    """What separates one node from the next."""

    PLAIN = "plain"
    """Nothing: needs no privilege; nodes share one hostname and node names do not resolve."""

    UTS = "uts"
    """Each node has its own hostname, ``/etc/hosts``, IPC and ``/dev/shm``; addresses are 127.77.x.y. Needs root."""

    NET = "net"
    """As ``uts``, and a network of its own; the only one where a wrong ``localhost`` fails. Needs root."""

    NET6 = "net6"
    """As ``net``, with addresses of IPv6 alone."""

    @property
    def has_network(self) -> bool:
        """Whether each node has a network of its own."""
        return self in (Isolation.NET, Isolation.NET6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One queue over all nodes."""

    name: str
    priority_tier: int = 1
    """Jobs of a higher tier preempt (requeue) those of a lower one."""

    options: str = ""
    """Further ``key=value`` words of the ``PartitionName`` line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """Everything that one cluster is made from."""

    node_names: tuple[str, ...]
    gpus_per_node: int = 8
    """Fake GPUs: SLURM counts and assigns them, nothing is behind them."""

    cores_per_node: int = 64
    """Even number of cores that SLURM believes in; nothing is enforced."""

    memory_mb: int = 256_000
    isolation: Isolation = Isolation.UTS
    accounting: bool = False
    """A real slurmdbd over a real MariaDB; without it ``sacct`` knows nothing."""

    partitions: tuple[Partition, ...] = (Partition(name="batch"), Partition(name="urgent", priority_tier=10))
    """The first one is the default."""

    slurmd_timeout_s: int = 30
    message_timeout_s: int = 10
    options: Mapping[str, str] = field(default_factory=dict)
    """Further lines of slurm.conf by name; they win over ours."""

    programs: str = ""
    """Directory of another release's programs, used before those that are installed."""


def expand_hostlist(expression: str) -> tuple[str, ...]:
    """Node names that a SLURM hostlist expression stands for, in SLURM's order."""
    with tempfile.NamedTemporaryFile(
        "w", suffix=".conf", encoding="utf-8"
    ) as conf:  # scontrol wants some configuration even for this
        conf.write("ClusterName=none\nSlurmctldHost=localhost\n")
        conf.flush()
        command = ["scontrol", "show", "hostnames", expression]
        environment = {"PATH": SEARCH_PATH, "SLURM_CONF": conf.name}
        done = subprocess.run(
            command, env=environment, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
    names = tuple(done.stdout.split())
    well_formed = all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name) for name in names)
    if done.returncode or not names or not well_formed or len(set(names)) != len(names):
        raise ClusterError(f"{expression!r} is no usable hostlist expression: {done.stderr.strip() or names}")
    return names


def missing_requirements(spec: ClusterSpec) -> list[str]:
    """Programs and privileges that this machine lacks for the cluster, each as one line."""
    programs = ["munged", "slurmctld", "slurmd", "slurmstepd", "scontrol", "sbatch", "srun", "unshare", "setpriv"]
    programs += ["slurmdbd", "mariadbd"] if spec.accounting else []
    programs += ["ip"] if spec.isolation.has_network else []
    missing = [f"no program {name!r}; .ci/system-packages installs it" for name in programs if not find_program(name)]
    if spec.isolation is not Isolation.PLAIN and not missing:
        probe = ["unshare", *namespaces(spec.isolation), "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
        done = subprocess.run(probe, capture_output=True, encoding="utf-8", errors="replace", check=False)
        if done.returncode:
            missing.append(f"isolation {spec.isolation!s} needs CAP_SYS_ADMIN: {done.stderr.strip()}")
    return missing


def namespaces(isolation: Isolation) -> list[str]:
    """Options of ``unshare`` and ``nsenter`` for the namespaces that a node has to itself."""
    net = ["--net"] if isolation.has_network else []
    return [] if isolation is Isolation.PLAIN else ["--uts", "--mount", "--ipc", *net]


def search_path(spec: ClusterSpec) -> str:
    """``PATH`` of the cluster's own processes."""
    return f"{spec.programs}:{SEARCH_PATH}" if spec.programs else SEARCH_PATH


def find_program(name: str, programs: str = "") -> Path | None:
    """Where a program is; daemons live in directories that a plain user's PATH does not have."""
    found = shutil.which(name, path=f"{programs}:{os.environ.get('PATH', '')}:{SEARCH_PATH}".removeprefix(":"))
    return Path(found) if found else None


def spec_from_json(data: Mapping[str, Any]) -> ClusterSpec:
    """The inverse of ``dataclasses.asdict`` after a way through JSON."""
    return ClusterSpec(
        **{
            **data,
            "node_names": tuple(data["node_names"]),
            "isolation": Isolation(data["isolation"]),
            "partitions": tuple(Partition(**partition) for partition in data["partitions"]),
        }
    )

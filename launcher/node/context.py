"""What a node learns about itself from its environment: SLURM's variables, or the local cluster's."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from launcher.common import env
from launcher.common.errors import AllocationError
from launcher.common.run_dir import attempt_dir, model_path
from launcher.config.schema import Config, LayoutConfig
from launcher.layout import Layout, Node
from launcher.node.devices import count_gpus, count_visible
from launcher.slurm.nodelist import expand_nodelist

OUTSIDE = ("192.0.2.1", "2001:db8::1")
"""Addresses that documentation uses, so that no network has them: one of IPv4, one of IPv6."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEnvironment:
    """One node's view of the allocation."""

    node_rank: int
    hostnames: tuple[str, ...]
    """All nodes, in nodelist order."""

    gpus: int | None
    """GPUs that the allocation gives on this node; None when no variable holds it."""

    job_id: str | None
    attempt: int
    """From 1; a requeue is one more, and so is a resume."""

    is_local: bool

    @property
    def hostname(self) -> str:
        """Name of this node in the nodelist."""
        return self.hostnames[self.node_rank]


def node_environment(environ: Mapping[str, str] = os.environ) -> NodeEnvironment:
    """Reads the environment.

    Raises:
        AllocationError: neither a SLURM task nor a node of a local run.
    """
    if env.LAUNCHER_LOCAL_NODE_RANK in environ:
        return NodeEnvironment(
            node_rank=int(environ[env.LAUNCHER_LOCAL_NODE_RANK]),
            hostnames=tuple(environ[env.LAUNCHER_LOCAL_HOSTNAMES].split(",")),
            gpus=count_visible(environ),
            job_id=None,
            attempt=int(environ.get(env.LAUNCHER_ATTEMPT, "1")),
            is_local=True,
        )
    if "SLURM_JOB_ID" in environ and "SLURM_NODEID" in environ:
        return _slurm(environ)
    raise AllocationError(
        "This process is neither a SLURM task nor a node of a local run: `SLURM_NODEID` and"
        f" `{env.LAUNCHER_LOCAL_NODE_RANK}` are both unset. HINT: start it with `srun`, or use `python -m launcher`."
    )


def check_allocation(node: NodeEnvironment, layout: LayoutConfig) -> None:
    """Compares what was given with what was planned.

    Raises:
        AllocationError: a wrong number of nodes, or too few GPUs here.
    """
    given, wanted = len(node.hostnames), layout.nodes + layout.spares
    if given != wanted:
        names = ", ".join(node.hostnames[:8]) + (", ..." if given > 8 else "")
        spares = f" and `layout.spares` is {layout.spares}" if layout.spares else ""
        raise AllocationError(
            f"The allocation has {given} {'node' if given == 1 else 'nodes'} ({names}), but `layout.nodes` is"
            f" {layout.nodes}{spares}. HINT: set `layout.nodes={given - layout.spares}`, or ask SLURM for {wanted}"
            " nodes."
        )
    if layout.device == "cuda" and node.gpus is not None and node.gpus < layout.gpus_per_node:
        raise AllocationError(
            f"Node {node.node_rank} ({node.hostname}) was given {node.gpus} GPUs, but `layout.gpus_per_node` is"
            f" {layout.gpus_per_node}. HINT: set `layout.gpus_per_node={node.gpus}`, or see `cluster.gpu_request` for"
            " how GPUs are requested."
        )


def own_address(node: NodeEnvironment) -> str:
    """An address of this node that its peers can reach.

    ``LAUNCHER_ADDRESS`` wins, for nodes with several networks. Else what the node's name in the nodelist resolves to,
    if it is an address of this machine; else the one that this machine would use to reach another host. IPv6 counts
    where there is no IPv4.
    """
    if chosen := os.environ.get(env.LAUNCHER_ADDRESS):
        return chosen
    if node.is_local:
        return "127.0.0.1"
    names = [os.environ.get("SLURMD_NODENAME", node.hostname), socket.gethostname()]
    resolved = [address for name in names for address in _resolve(name) if _is_mine(address)]
    for address in resolved:
        if not ip_address(address).is_loopback:
            return address
    # Nodes may have no way out. The job script's node is one of this job's, or can be reached by all of them.
    for probe in filter(None, (os.environ.get("SLURM_LAUNCH_NODE_IPADDR"), *OUTSIDE)):
        outgoing = _outgoing_address(probe)
        if outgoing is not None and not ip_address(outgoing).is_loopback:
            return outgoing
    return resolved[0] if resolved else "127.0.0.1"


def _slurm(environ: Mapping[str, str]) -> NodeEnvironment:
    hostnames = tuple(name for nodelist in _nodelists(environ) for name in expand_nodelist(nodelist))
    return NodeEnvironment(
        node_rank=int(environ["SLURM_NODEID"]),
        hostnames=hostnames,
        gpus=count_gpus(environ),
        job_id=_job_id(environ),
        # A step of a person's own has no job script that took a number for all nodes.
        attempt=int(environ.get(env.LAUNCHER_ATTEMPT) or int(environ.get("SLURM_RESTART_COUNT", "0")) + 1),
        is_local=False,
    )


def _nodelists(environ: Mapping[str, str]) -> list[str]:
    """The nodelist of each component of the job, in the order in which a step over all of them numbers its nodes.

    ``SLURM_JOB_NODELIST`` holds all nodes of a heterogeneous step, too, but sorted by name.
    """
    # Another job's variables, inherited by a script that was submitted from inside it, do not count.
    if environ.get("SLURM_JOB_ID_HET_GROUP_0") == environ["SLURM_JOB_ID"]:
        size = int(environ["SLURM_HET_SIZE"])
        return [environ[f"SLURM_JOB_NODELIST_HET_GROUP_{group}"] for group in range(size)]
    return [environ["SLURM_JOB_NODELIST"]]


def _job_id(environ: Mapping[str, str]) -> str:
    """As SLURM's tools name the job: ``123``; ``123_4`` for an element of an array."""
    if "SLURM_ARRAY_TASK_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ["SLURM_JOB_ID"]


def _resolve(name: str) -> list[str]:
    """Addresses of a name; those of IPv4 first, because some programs know no others."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    # An address with a scope (``fe80::1%eth0``) means nothing on another node.
    addresses = [(family, str(address[0])) for family, _, _, _, address in found if "%" not in str(address[0])]
    known = [address for family, address in addresses if family == socket.AF_INET]
    return list(dict.fromkeys([*known, *(address for family, address in addresses if family == socket.AF_INET6)]))


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _is_mine(address: str) -> bool:
    try:
        with socket.socket(_family(address), socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def _outgoing_address(outside: str) -> str | None:
    try:
        with socket.socket(_family(outside), socket.SOCK_DGRAM) as probe:
            # Connecting a datagram socket sends nothing: it only consults the routing table.
            probe.connect((outside, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeContext:
    """One node of one attempt."""

    config: Config
    layout: Layout
    node_rank: int
    """Index of this node in the nodelist; which slot of the layout it holds follows from its assignment."""

    hostname: str
    run_dir: Path
    attempt: int
    address: str
    """This node's address, as its peers reach it."""

    control: str
    """``host:port`` of the control service."""

    token: str
    shim: int
    """Process id of this node's shim."""

    @property
    def node(self) -> Node:
        """This node as it was planned; a spare has no processes, whatever slot it takes later."""
        return self.layout.all_nodes[self.node_rank]

    @property
    def stop_file(self) -> Path:
        """Exists once the run was requested to stop; the trainers of this node poll for it."""
        return Path(os.environ[env.LAUNCHER_SCRATCH]) / "stop"

    @property
    def attempt_dir(self) -> Path:
        """Where this attempt keeps its files."""
        return attempt_dir(self.run_dir, self.attempt)

    @property
    def log_dir(self) -> Path:
        """Where the logs of this attempt are."""
        return self.attempt_dir / "logs"

    @property
    def model_path(self) -> Path:
        """Directory of the model that is trained and served."""
        return model_path(self.config.model.path, self.run_dir)

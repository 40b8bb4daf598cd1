"""Who is where: the value that ``plan`` prints and that every node executes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a node, or a process on it, is there for."""

    TRAINER = "trainer"
    INFERENCE = "inference"
    SPARE = "spare"
    """Of a node only: it waits to take a lost node's place."""

    HELPER = "helper"
    """Of a process only: it prepares something for the others. No node has this role."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process that an agent starts: a trainer rank, or one node's part of an engine."""

    name: str
    """Unique in the run and the stem of its log: ``trainer-0003``, ``inference-1``, ``inference-1.2``."""

    role: Role
    node_rank: int
    """Index of its node in the nodelist."""

    local_rank: int
    """Index among the processes of the same role on the node (torch's ``LOCAL_RANK`` for a trainer)."""

    rank: int
    """Trainer: torch's global ``RANK``. Inference: the index of the replica."""

    replica_rank: int
    """Inference: index of this node inside the replica. Trainer: 0."""

    gpus: tuple[int, ...]
    """GPU indices of the node that it owns; empty when ``layout.device`` is ``cpu``."""

    argv: tuple[str, ...]
    """Command line; holds no secret and no value known only at run time."""

    env: Mapping[str, str]
    """What is set on top of the agent's environment; the agent adds addresses, ports and keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One independent engine."""

    index: int
    node_ranks: tuple[int, ...]
    """Nodes it spans; the first one serves HTTP."""

    port: int
    """Planned HTTP port on the first node: ``inference.base_port`` + its slot on that node."""

    tensor_parallel_size: int
    pipeline_parallel_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node and its share of the run."""

    node_rank: int
    hostname: str
    role: Role
    role_rank: int
    """Rank of the node among the nodes of its role."""

    processes: tuple[Process, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The whole run: every node, in nodelist order."""

    nodes: tuple[Node, ...]
    replicas: tuple[Replica, ...]
    gpus_per_node: int
    device: str
    """``cuda`` or ``cpu``; on ``cpu`` the GPUs are slots that only count processes."""

    world_size: int
    """Trainer ranks in the run."""

    local_world_size: int
    """Trainer ranks on each trainer node."""

    spares: tuple[str, ...] = ()
    """Hostnames of the nodes after ``nodes``, which wait to take a lost node's place."""

    @property
    def everybody(self) -> tuple[Node, ...]:
        """``nodes``, and the spares as nodes without processes."""
        first = len(self.nodes)
        spares = (
            Node(node_rank=first + index, hostname=hostname, role=Role.SPARE, role_rank=index, processes=())
            for index, hostname in enumerate(self.spares)
        )
        return (*self.nodes, *spares)

    @property
    def trainer_nodes(self) -> tuple[Node, ...]:
        """Nodes that train, the master first."""
        return tuple(node for node in self.nodes if node.role is Role.TRAINER)

    @property
    def inference_nodes(self) -> tuple[Node, ...]:
        """Nodes that only run engines (none in local mode)."""
        return tuple(node for node in self.nodes if node.role is Role.INFERENCE)

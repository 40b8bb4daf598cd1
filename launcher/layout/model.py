"""Which process runs on which node: the value that ``plan`` prints and every node executes; its form as JSON."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any


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
    def all_nodes(self) -> tuple[Node, ...]:
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


def layout_to_json(layout: Layout) -> str:
    """``layout`` as JSON with one line per node, so that the file of a large run stays small and can be searched."""
    common = {role: _common_env(layout, role) for role in Role}
    argvs: dict[tuple[str, ...], int] = {}
    nodes = [json.dumps(_node_to_dict(node, common, argvs)) for node in layout.nodes]
    replicas = [json.dumps(_fields(replica)) for replica in layout.replicas]
    head = {
        "device": layout.device,
        "gpus_per_node": layout.gpus_per_node,
        "world_size": layout.world_size,
        "local_world_size": layout.local_world_size,
        "spares": layout.spares,
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    lines.append(f'"env": {json.dumps(common, indent=1)}')
    lines.append(f'"argv": {_array([json.dumps(argv) for argv in argvs])}')
    lines.append(f'"replicas": {_array(replicas)}')
    lines.append(f'"nodes": {_array(nodes)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def layout_from_json(text: str) -> Layout:
    """The layout that :func:`layout_to_json` wrote; equal to the one it was given."""
    data = json.loads(text)
    common = {Role(role): env for role, env in data["env"].items()}
    argvs = [tuple(argv) for argv in data["argv"]]
    return Layout(
        nodes=tuple(_node_from_dict(node, common, argvs) for node in data["nodes"]),
        replicas=tuple(
            Replica(**{**replica, "node_ranks": tuple(replica["node_ranks"])}) for replica in data["replicas"]
        ),
        gpus_per_node=data["gpus_per_node"],
        device=data["device"],
        world_size=data["world_size"],
        local_world_size=data["local_world_size"],
        spares=tuple(data["spares"]),
    )


def _array(items: list[str]) -> str:
    return "[\n" + ",\n".join(items) + "\n]" if items else "[]"


def _common_env(layout: Layout, role: Role) -> dict[str, str]:
    common: dict[str, str] | None = None
    for node in layout.nodes:
        for process in node.processes:
            if process.role is not role:
                continue
            if common is None:
                common = dict(process.env)
            else:
                env = process.env
                for name in [name for name, value in common.items() if env.get(name) != value]:
                    del common[name]
    return common or {}


def _node_to_dict(
    node: Node, common: Mapping[Role, Mapping[str, str]], argvs: dict[tuple[str, ...], int]
) -> dict[str, Any]:
    processes = [
        {
            **_fields(process, without=("node_rank",)),
            "argv": argvs.setdefault(process.argv, len(argvs)),
            "env": {name: value for name, value in process.env.items() if name not in common[process.role]},
        }
        for process in node.processes
    ]
    return {**_fields(node), "processes": processes}


def _node_from_dict(
    data: dict[str, Any], common: Mapping[Role, Mapping[str, str]], argvs: list[tuple[str, ...]]
) -> Node:
    processes = tuple(
        Process(
            **{
                **process,
                "role": (role := Role(process["role"])),
                "node_rank": data["node_rank"],
                "gpus": tuple(process["gpus"]),
                "argv": argvs[process["argv"]],
                "env": {**common[role], **process["env"]},
            }
        )
        for process in data["processes"]
    )
    return Node(**{**data, "role": Role(data["role"]), "processes": processes})


def _fields(value: Any, without: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a dataclass, as they are."""
    return {field.name: getattr(value, field.name) for field in fields(value) if field.name not in without}

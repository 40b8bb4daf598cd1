"""Writes a layout as JSON and reads it back; what processes of a role have in common is written once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from launcher.layout.model import Layout, Node, Process, Replica, Role


def layout_to_json(layout: Layout) -> str:
    """``layout`` as JSON with one line per node, so that the file of a large run stays small and can be searched."""
    common = {role: _common_env(layout, role) for role in Role}
    argvs: dict[tuple[str, ...], int] = {}
    nodes = [json.dumps(_node_to_dict(node, common, argvs)) for node in layout.nodes]
    replicas = [json.dumps(_replica_to_dict(replica)) for replica in layout.replicas]
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
    return {
        "node_rank": node.node_rank,
        "hostname": node.hostname,
        "role": node.role,
        "role_rank": node.role_rank,
        "processes": [_process_to_dict(process, common[process.role], argvs) for process in node.processes],
    }


def _process_to_dict(process: Process, common: Mapping[str, str], argvs: dict[tuple[str, ...], int]) -> dict[str, Any]:
    return {
        "name": process.name,
        "role": process.role,
        "local_rank": process.local_rank,
        "rank": process.rank,
        "replica_rank": process.replica_rank,
        "gpus": process.gpus,
        "argv": argvs.setdefault(process.argv, len(argvs)),
        "env": {name: value for name, value in process.env.items() if name not in common},
    }


def _replica_to_dict(replica: Replica) -> dict[str, Any]:
    return {
        "index": replica.index,
        "node_ranks": replica.node_ranks,
        "port": replica.port,
        "tensor_parallel_size": replica.tensor_parallel_size,
        "pipeline_parallel_size": replica.pipeline_parallel_size,
    }


def _node_from_dict(
    data: dict[str, Any], common: Mapping[Role, Mapping[str, str]], argvs: list[tuple[str, ...]]
) -> Node:
    return Node(
        node_rank=data["node_rank"],
        hostname=data["hostname"],
        role=Role(data["role"]),
        role_rank=data["role_rank"],
        processes=tuple(
            Process(
                name=process["name"],
                role=(role := Role(process["role"])),
                node_rank=data["node_rank"],
                local_rank=process["local_rank"],
                rank=process["rank"],
                replica_rank=process["replica_rank"],
                gpus=tuple(process["gpus"]),
                argv=argvs[process["argv"]],
                env={**common[role], **process["env"]},
            )
            for process in data["processes"]
        ),
    )

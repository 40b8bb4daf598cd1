"""``launcher nodes``: nodes that were bad and are left out for a while."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from launcher.cli.parser import CommandParser
from launcher.common.errors import UsageError
from launcher.common.text import aligned, duration
from launcher.preflight.bad_nodes import BadNodeCache, default_bad_node_dir

UNKNOWN = 1
HEADER = ("node", "cluster", "forgotten in", "why")


def main(arguments: Sequence[str]) -> int:
    """Lists them, or forgets some."""
    parser = CommandParser(
        "nodes",
        "Nodes that a preflight found bad. New jobs leave them out until they are forgotten, by time or by you.",
        examples=["launcher nodes", "launcher nodes forget gpu-17", "launcher nodes forget --all"],
        exit_codes={UNKNOWN: "a node to forget was not remembered"},
    )
    parser.add_argument("action", nargs="?", choices=("list", "forget"), default="list", help="what to do")
    parser.add_argument("nodes", nargs="*", metavar="NODE", help="nodes to forget")
    parser.add_argument("--all", action="store_true", help="forget every node")
    parser.add_argument("--cluster", help="of this cluster only; its name is `ClusterName` in `scontrol show config`")
    parser.add_argument(
        *("--dir", "--memory"),
        type=Path,
        default=None,
        metavar="DIR",
        help="directory, if `preflight.bad_node_dir` was set (`--memory` is its old name)",
    )
    parser.add_json("what is remembered")
    options = parser.parse_intermixed_args(arguments)
    memory = BadNodeCache(options.dir or default_bad_node_dir())
    if options.action == "list":
        if options.nodes:
            raise UsageError(f"launcher nodes: {options.nodes[0]} after `list`. HINT: only `forget` takes names.")
        return _list(memory, options.cluster, as_json=options.json)
    names = [entry.node for entry in memory.entries(options.cluster)] if options.all else options.nodes
    if not names and not options.all:
        raise UsageError("launcher nodes forget: no node is named. HINT: name some, or add `--all`.")
    return _forget(memory, list(dict.fromkeys(names)), options.cluster)


def _list(memory: BadNodeCache, cluster: str | None, *, as_json: bool) -> int:
    entries = memory.entries(cluster)
    if as_json:
        print(json.dumps([asdict(entry) for entry in entries], indent=2))
        return 0
    if not entries:
        print("no node is remembered as bad")
        return 0
    now = time.time()
    rows = [HEADER, *((e.node, e.cluster, duration(e.expires - now), e.reason) for e in entries)]
    print("\n".join(aligned(rows)))
    return 0


def _forget(memory: BadNodeCache, names: list[str], cluster: str | None) -> int:
    unknown = [name for name in names if not memory.forget(name, cluster)]
    for name in names:
        print(f"{name} was not remembered" if name in unknown else f"{name} is forgotten", flush=True)
    if unknown:
        print("launcher: HINT: `launcher nodes` lists what is remembered.", file=sys.stderr)
    return UNKNOWN if unknown else 0

"""``launcher inspect NODE|RANK``: what one node, or one process, executes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launcher.cli.parser import CommandParser, compose_and_check
from launcher.common.errors import UsageError
from launcher.layout.model import Layout, Process, Role
from launcher.observe.find import add_output_dir, find_run
from launcher.observe.layouts import LayoutTarget, find_target, layout_of

AT_RUN_TIME = {
    Role.TRAINER: "MASTER_ADDR, MASTER_PORT, LAUNCHER_CONTROL, LAUNCHER_TOKEN, the engines' URLs and their key",
    Role.INFERENCE: "LAUNCHER_PORT, LAUNCHER_CONTROL, LAUNCHER_TOKEN, VLLM_API_KEY, VLLM_HOST_IP",
}
"""Set by the agent when it starts a process: not known before, or secret."""


def main(arguments: Sequence[str]) -> int:
    """Prints what is planned, for the configuration given or for a run."""
    parser = CommandParser(
        "inspect",
        "Shows what one node or one process executes: command line, environment, GPUs, ports, URL. It is read from the"
        " layout that the nodes themselves follow: of the overrides given, or with --run of a run.",
        examples=[
            "launcher inspect trainer-3 experiment=qwen3_8b layout.nodes=2",
            "launcher inspect gpu-07 --run last",
        ],
    )
    parser.add_argument("target", metavar="NODE|RANK", help="node rank, hostname, or process: trainer-3, inference-0")
    parser.add_overrides()
    parser.add_argument("--run", metavar="RUN", help="inspect a run instead: path, name, beginning, job id, or `last`")
    add_output_dir(parser)
    parser.add_json("all of it")
    options = parser.parse_intermixed_args(arguments)
    if options.run is not None and options.overrides:
        raise UsageError(f"`--run` shows a run as it is; it takes no overrides ({' '.join(options.overrides)}).")
    if options.run is not None:
        layout = layout_of(find_run(options.run, options.output_dir))
    else:
        from launcher.layout import plan

        layout = plan(compose_and_check(options))
    target = find_target(layout, options.target)
    print(json.dumps(as_data(layout, target), indent=1) if options.json else "\n".join(_text(layout, target)))
    return 0


def as_data(layout: Layout, target: LayoutTarget) -> dict[str, Any]:
    """Everything that is shown, as JSON."""
    node = target.node
    return {
        "node_rank": node.node_rank,
        "hostname": node.hostname,
        "role": node.role.value,
        "role_rank": node.role_rank,
        "processes": [
            {
                "name": process.name,
                "role": process.role.value,
                "rank": process.rank,
                "local_rank": process.local_rank,
                "gpus": list(process.gpus),
                "url": _url(layout, process),
                "argv": list(process.argv),
                "env": dict(process.env),
            }
            for process in target.processes
        ],
    }


def _text(layout: Layout, target: LayoutTarget) -> Iterator[str]:
    node = target.node
    yield f"node {node.node_rank} ({node.hostname}): {node.role.value} node {node.role_rank}"
    for role in Role:
        processes = [process for process in target.processes if process.role is role]
        if processes:
            yield from _of_role(layout, role, processes)


def _of_role(layout: Layout, role: Role, processes: Sequence[Process]) -> Iterator[str]:
    """What they have in common once, and then how each differs."""
    yield ""
    yield ", ".join(process.name for process in processes)
    argvs = {process.argv for process in processes}
    if len(argvs) == 1:
        yield f"  runs     {shlex.join(processes[0].argv)}"
    common = dict(processes[0].env.items())
    for process in processes[1:]:
        common = {name: value for name, value in common.items() if process.env.get(name) == value}
    yield "  with"
    yield from _variables(common, "    ")
    yield f"  set when it starts: {AT_RUN_TIME.get(role, 'LAUNCHER_CONTROL, LAUNCHER_TOKEN')}"
    for process in processes:
        yield f"  {process.name}"
        for label, text in _details(layout, process).items():
            yield f"    {label:<8} {text}"
        if len(argvs) > 1:
            yield f"    runs     {shlex.join(process.argv)}"
        yield from _variables({name: v for name, v in process.env.items() if name not in common}, "    ")


def _details(layout: Layout, process: Process) -> dict[str, str]:
    unit = "GPUs" if layout.device == "cuda" else "slots"
    details = {unit: ", ".join(map(str, process.gpus)) or "none", "log": f"logs/{process.name}.log"}
    if (url := _url(layout, process)) is not None:
        details["serves"] = url
    return details


def _url(layout: Layout, process: Process) -> str | None:
    """Planned address of a replica's head."""
    if process.role is not Role.INFERENCE or process.replica_rank != 0:
        return None
    return f"http://{layout.nodes[process.node_rank].hostname}:{layout.replicas[process.rank].port}"


def _variables(env: Mapping[str, str], indent: str) -> Iterator[str]:
    for name in sorted(env):
        yield f"{indent}{name}={shlex.quote(env[name])}"

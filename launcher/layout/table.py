"""Shows a layout as a table for people; runs of nodes that differ only in their numbers become one row."""

from __future__ import annotations

from itertools import groupby

from launcher.common.text import aligned, counted
from launcher.layout.model import Layout, Node, Process, Role

_HEADER = ("node", "hostname", "role", "role rank", "processes", "GPUs", "ports")
_COLLAPSE_ABOVE = 16
"""Up to so many nodes every node has its own row."""


def render_table(layout: Layout) -> str:
    """The table, with a line of totals beneath; a few rows also for thousands of nodes."""
    ports = {(replica.node_ranks[0], replica.index): replica.port for replica in layout.replicas}
    if len(layout.nodes) <= _COLLAPSE_ABOVE:
        groups = [[node] for node in layout.nodes]
    else:
        groups = [list(group) for _, group in groupby(layout.nodes, key=_pattern)]
    rows = [_row(group, layout, ports) for group in groups]
    rows += _spare_rows(layout)
    return "\n".join([*aligned([_HEADER, *rows]), "", summary(layout)])


def summary(layout: Layout) -> str:
    """One line of totals."""
    trainers, engines = len(layout.trainer_nodes), len(layout.inference_nodes)
    unit = "GPU" if layout.device == "cuda" else "CPU slot"
    shape = ""
    if layout.replicas:
        replica = layout.replicas[0]
        shape = f" (tensor parallel {replica.tensor_parallel_size}"
        stages = replica.pipeline_parallel_size
        shape += f", pipeline parallel {stages})" if stages > 1 else ")"
    where = f"{trainers} trainer, {engines} inference" if engines else "both roles on every node"
    if layout.spares:
        where += f", and {counted(len(layout.spares), 'spare')}"
    return (
        f"{counted(len(layout.nodes) + len(layout.spares), 'node')} with {counted(layout.gpus_per_node, unit)} each:"
        f" {where};"
        f" {counted(layout.world_size, 'trainer rank')}, {counted(len(layout.replicas), 'engine')}{shape}"
    )


def _pattern(node: Node) -> object:
    """What must be equal for two neighbours to share a row; the nodes of one replica are taken as equal."""
    return node.role, [(process.role, process.local_rank, process.gpus) for process in node.processes]


def _row(group: list[Node], layout: Layout, ports: dict[tuple[int, int], int]) -> tuple[str, ...]:
    first, last = group[0], group[-1]
    trainers = [process.rank for node in group for process in node.processes if process.role is Role.TRAINER]
    engines = [process for node in group for process in node.processes if process.role is Role.INFERENCE]
    gpus = [gpu for process in first.processes for gpu in process.gpus]
    served = [ports[key] for process in engines if (key := (process.node_rank, process.rank)) in ports]
    return (
        _range([first.node_rank, last.node_rank]),
        first.hostname if first is last else f"{first.hostname} .. {last.hostname}",
        first.role.value if layout.inference_nodes else "both",
        _range([first.role_rank, last.role_rank]),
        ", ".join(filter(None, (_named("trainer", trainers), _engines(engines, layout)))),
        _range(gpus) or "-",
        _range(served) or "-",
    )


def _spare_rows(layout: Layout) -> list[tuple[str, ...]]:
    if not layout.spares:
        return []
    first, last = len(layout.nodes), len(layout.nodes) + len(layout.spares) - 1
    if last >= _COLLAPSE_ABOVE and first < last:
        names = [(_range([first, last]), f"{layout.spares[0]} .. {layout.spares[-1]}")]
    else:
        names = [(str(first + index), hostname) for index, hostname in enumerate(layout.spares)]
    return [(*name, "spare", "-", "", "-", "-") for name in names]


def _engines(engines: list[Process], layout: Layout) -> str:
    text = _named("engine", [process.rank for process in engines])
    parts = len(layout.replicas[engines[0].rank].node_ranks) if engines else 1
    if parts > 1 and len(engines) == 1:
        text += f" part {engines[0].replica_rank + 1}/{parts}"
    return text


def _named(word: str, ranks: list[int]) -> str:
    return f"{word} {_range(ranks)}" if ranks else ""


def _range(numbers: list[int]) -> str:
    """``3-7``; empty for no numbers. Callers know that there are no gaps."""
    if not numbers:
        return ""
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}-{high}"

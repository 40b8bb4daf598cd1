"""Draws who is where: every node with its GPUs, coloured by role, engines labelled by replica."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from launcher.common.text import counted
from launcher.layout.model import Layout, Node, Process, Role
from launcher.observe.plots.palette import BLUE, GREY, INK, ORANGE, PALE, text_on

PALE_ORANGE = "#F7D48A"
ENGINE_COLOURS = (ORANGE, PALE_ORANGE)
"""In turn, so that neighbouring replicas stay apart."""

NODES_PER_COLUMN = 16
MOST_NODES_DRAWN = 128
KEPT_OF_RUN = 3
"""Of many nodes alike, so many are drawn at either end."""

LABEL_WIDTH_IN = 1.3
COLUMN_WIDTH_IN = 3.7
WIDE_COLUMN_IN = 8.0
ROW_IN = 0.42
GAP = 0.18
"""Between two nodes, as a share of a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """Nodes alike that are not drawn one by one."""

    count: int


def draw_layout(layout: Layout, *, title: str) -> Figure:
    """All nodes in nodelist order, down the columns; with very many nodes, runs of nodes alike are folded."""
    rows = list(_rows(layout))
    columns = math.ceil(len(rows) / NODES_PER_COLUMN)
    per_column = math.ceil(len(rows) / columns)
    column_in = WIDE_COLUMN_IN if columns == 1 else COLUMN_WIDTH_IN
    width, height = columns * column_in + 0.3, per_column * ROW_IN + 1.35
    figure = Figure(figsize=(width, height))
    # Inches as the unit, so that what fits can be computed.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    slots = _slots(layout)
    for index, row in enumerate(rows):
        column, line = divmod(index, per_column)
        x, y = 0.2 + column * column_in, 0.85 + line * ROW_IN
        if isinstance(row, Folded):
            text = f"… {row.count} more nodes like these"
            axes.text(x, y + ROW_IN / 2, text, fontsize=8.5, color=GREY, va="center", style="italic")
        else:
            _draw_node(axes, layout, row, x, y, column_in - 0.2, slots)
    axes.text(0.2, 0.28, title, fontsize=12, color=INK, va="center", weight="bold")
    axes.text(0.2, 0.58, _headline(layout), fontsize=9.5, color=INK, va="center")
    figure.legend(handles=_legend(layout), loc="lower left", bbox_to_anchor=(0.1 / width, 0.02), ncols=4, fontsize=9,
                  frameon=False)  # fmt: skip
    return figure


def _headline(layout: Layout) -> str:
    train, infer = len(layout.trainer_nodes), len(layout.inference_nodes)
    unit = "GPU" if layout.device == "cuda" else "slot"
    parts = [f"{counted(len(layout.nodes), 'node')} of {counted(layout.gpus_per_node, unit)}"]
    parts.append(f"{train} train ({counted(layout.world_size, 'rank')})" if infer else f"{train} train and infer")
    shapes = {(r.tensor_parallel_size, r.pipeline_parallel_size) for r in layout.replicas}
    shape = "".join(f", tensor parallel {t}" + (f", pipeline parallel {p}" if p > 1 else "") for t, p in shapes)
    replicas = f"{counted(len(layout.replicas), 'replica')}{shape}"
    parts.append(f"{infer} infer ({replicas})" if infer else replicas)
    return "; ".join(parts)


def _legend(layout: Layout) -> list[Patch]:
    unit = "GPU" if layout.device == "cuda" else "slot"
    handles = [Patch(facecolor=BLUE, label="trainer rank")]
    if layout.replicas:
        handles.append(Patch(facecolor=ORANGE, label="replica (shades alternate)"))
    if layout.device == "cuda" and any(_is_free(layout, node) for node in layout.nodes):
        handles.append(Patch(facecolor=PALE, label=f"free {unit}"))
    return handles


def _is_free(layout: Layout, node: Node) -> bool:
    return len({gpu for process in node.processes for gpu in process.gpus}) < layout.gpus_per_node


def _rows(layout: Layout) -> Iterator[Node | Folded]:
    if len(layout.nodes) <= MOST_NODES_DRAWN:
        yield from layout.nodes
        return
    for _, group in groupby(layout.nodes, key=_shape):
        nodes = list(group)
        if len(nodes) <= 2 * KEPT_OF_RUN + 1:
            yield from nodes
            continue
        yield from nodes[:KEPT_OF_RUN]
        yield Folded(count=len(nodes) - 2 * KEPT_OF_RUN)
        yield from nodes[-KEPT_OF_RUN:]


def _shape(node: Node) -> tuple[object, ...]:
    # Not the replica's own rank: nodes in the middle of a replica are like its first one, as a picture.
    return node.role, tuple((process.role, process.gpus) for process in node.processes)


def _slots(layout: Layout) -> int:
    if layout.device == "cuda":
        return layout.gpus_per_node
    return max((len(_of(node, role)) for node in layout.nodes for role in Role), default=1) or 1


def _of(node: Node, role: Role) -> list[Process]:
    return [process for process in node.processes if process.role is role]


def _draw_node(axes: Axes, layout: Layout, node: Node, x: float, y: float, width: float, slots: int) -> None:
    host = node.hostname if len(node.hostname) <= 17 else f"…{node.hostname[-16:]}"
    role = f"node {node.node_rank}, {node.role.value} {node.role_rank}"
    axes.text(x, y + 0.13, host, fontsize=8.5, color=INK, va="center")
    axes.text(x, y + 0.29, role, fontsize=6.8, color="#555555", va="center")
    left, cell = x + LABEL_WIDTH_IN, (width - LABEL_WIDTH_IN) / slots
    top, height = y + GAP * ROW_IN / 2, ROW_IN * (1 - GAP)
    if layout.device == "cuda":
        for gpu in range(slots):
            _box(axes, left + gpu * cell, top, cell, height, PALE)
    lanes = _lanes(node)
    for lane, processes in enumerate(lanes):
        lane_top, lane_height = top + lane * height / len(lanes), height / len(lanes)
        for index, process in enumerate(processes):
            spans = _spans(process.gpus) if layout.device == "cuda" else [(index, 1)]
            for begin, count in spans:
                colour = BLUE if process.role is Role.TRAINER else ENGINE_COLOURS[process.rank % 2]
                _box(axes, left + begin * cell, lane_top, count * cell, lane_height, colour)
                label, size = _fitting(_labels(layout, process), count * cell, lane_height)
                middle = left + (begin + count / 2) * cell
                axes.text(middle, lane_top + lane_height / 2, label, fontsize=size, color=text_on(colour),
                          ha="center", va="center_baseline")  # fmt: skip
    if layout.device == "cuda":
        # Hairlines through a replica that has several GPUs.
        edges = [left + gpu * cell for gpu in range(1, slots)]
        axes.vlines(edges, top + height * 0.92, top + height, color="white", linewidth=0.8)


def _lanes(node: Node) -> list[list[Process]]:
    """One lane, or one per role where both use the same GPUs (or there are no GPUs)."""
    trainers, engines = _of(node, Role.TRAINER), _of(node, Role.INFERENCE)
    owned = [gpu for process in node.processes for gpu in process.gpus]
    is_apart = bool(owned) and len(owned) == len(set(owned))
    if is_apart or not (trainers and engines):
        return [[*trainers, *engines]]
    return [trainers, engines]


def _labels(layout: Layout, process: Process) -> Sequence[str]:
    """From the most telling label to the shortest."""
    if process.role is Role.TRAINER:
        return f"rank {process.rank}", str(process.rank)
    replica = layout.replicas[process.rank]
    span = len(replica.node_ranks)
    part = f" ({process.replica_rank + 1}/{span})" if span > 1 else ""
    names = [f"replica {process.rank}{part}", f"r{process.rank}{part}", f"r{process.rank}"]
    # The first node of a replica is the one that serves HTTP.
    return names if process.replica_rank else [f"{names[0]}, port {replica.port}", *names]


def _fitting(labels: Sequence[str], width: float, height: float) -> tuple[str, float]:
    """The first label that fits into ``width`` x ``height`` inches, and its size in points."""
    for smallest in (7.0, 5.5):
        for label in labels:
            # A character is about 0.6 of the size wide; 72 points are an inch.
            size = min(8.0, 60 * height, (width - 0.04) * 72 / (0.6 * len(label)))
            if size >= smallest:
                return label, size
    return "", 1.0


def _spans(gpus: tuple[int, ...]) -> list[tuple[int, int]]:
    """Runs of consecutive GPUs, as (first, count)."""
    spans: list[tuple[int, int]] = []
    for gpu in sorted(gpus):
        if spans and sum(spans[-1]) == gpu:
            spans[-1] = (spans[-1][0], spans[-1][1] + 1)
        else:
            spans.append((gpu, 1))
    return spans


def _box(axes: Axes, x: float, y: float, width: float, height: float, colour: str) -> None:
    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor="white", linewidth=1.0))

"""Draws a sweep: the metric of every run by step, and the value each came to against each setting that was varied."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from launcher.config.metric import Metric
from launcher.observe.plots.palette import BLUE, INK, PALE_GREY, RED, SEQUENCE, clean
from launcher.sweep.report import setting, settings
from launcher.sweep.status import Run

MOST_PANELS = 4
NAMED_RUNS = min(8, len(SEQUENCE))
"""Curves with a colour and a name of their own."""


def draw_sweep(runs: Sequence[Run], metric: Metric, *, title: str) -> Figure:
    """All runs in one panel, and one panel for each setting.

    Args:
        runs: with a value each, the best first.
    """
    names = settings(runs)[:MOST_PANELS]
    figure = Figure(figsize=(9, 4.2 + 3.2 * math.ceil(len(names) / 2)), layout="constrained")
    grid = figure.add_gridspec(1 + math.ceil(len(names) / 2), 2)
    figure.suptitle(f"{title}: {metric}", fontsize=12, color=INK)
    _curves(figure.add_subplot(grid[0, :]), runs, metric)
    for index, name in enumerate(names):
        _panel(figure.add_subplot(grid[1 + index // 2, index % 2]), runs, name, metric)
    return figure


def _curves(axes: Axes, runs: Sequence[Run], metric: Metric) -> None:
    for index, run in reversed(list(enumerate(runs))):
        is_named = index < NAMED_RUNS
        colour = SEQUENCE[index] if is_named else PALE_GREY
        words = " ".join(run.entry.overrides) or run.entry.identity
        label = words if is_named else None
        steps, values = zip(*run.progress.curve, strict=True)
        axes.plot(
            steps, values, color=colour, linewidth=1.8 if is_named else 0.9, label=label, marker="o", markersize=3
        )
    axes.set_xlabel("step")
    axes.set_ylabel(metric.name)
    axes.set_title(f"{len(runs)} runs; the best ones in colour", fontsize=9.5, color=INK, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="best", fontsize=7.5, framealpha=0.9, edgecolor="none")
    clean(axes)


def _panel(axes: Axes, runs: Sequence[Run], name: str, metric: Metric) -> None:
    points = [(setting(run, name), run.value) for run in runs if run.value is not None]
    numbers = [(x, y) for x, y in points if isinstance(x, float)]
    if len(numbers) == len(points):
        xs: list[float] = [x for x, _ in numbers]
        if min(xs) > 0 and max(xs) / min(xs) >= 10:
            axes.set_xscale("log")
    else:
        words = sorted({str(x) for x, _ in points})
        xs = [float(words.index(str(x))) for x, _ in points]
        axes.set_xticks(range(len(words)), words, rotation=20 if max(map(len, words)) > 10 else 0)
    ys = [y for _, y in points]
    axes.scatter(xs, ys, s=26, color=BLUE, alpha=0.75, linewidths=0)
    # The runs come with the best first.
    axes.scatter(xs[:1], ys[:1], s=60, color=RED, linewidths=0)
    axes.set_xlabel(name)
    axes.set_ylabel(str(metric))
    axes.set_title("the best run in red", fontsize=9.5, color=INK, loc="left")
    clean(axes)

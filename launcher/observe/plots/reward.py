"""Draws the reward of each step, and below it the mismatch between trainer and engine."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from launcher.common.text import duration
from launcher.events.run_state import RunState
from launcher.observe.plots.palette import BLUE, GREY, INK, ORANGE, RED, clean

LEAST_WINDOW = 5
DENSE = 200
"""With more steps than this, points and lines are drawn finer."""


def draw_reward(state: RunState, *, title: str) -> Figure:
    """Reward per step with its moving average and the last version; mismatch and sync time below when reported."""
    has_mismatch = any(step.mismatch is not None for step in state.steps)
    has_sync = any(step.sync_s is not None for step in state.steps)
    heights = [3.2] + [1.3] * has_mismatch + [1.1] * has_sync
    figure = Figure(figsize=(8, sum(heights) + 1.0), layout="constrained")
    grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
    panels = [axes for (axes,) in grid]
    figure.suptitle(title, fontsize=12, color=INK)
    _reward(panels[0], state)
    if has_mismatch:
        _mismatch(panels[1], state)
    if has_sync:
        _sync(panels[-1], state)
    for axes in panels:
        clean(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    panels[-1].set_xlabel("step")
    return figure


def moving_average(values: list[float], window: int) -> list[float]:
    """Mean of each value and those before it, at most ``window`` of them."""
    return [sum(values[max(i - window + 1, 0) : i + 1]) / min(window, i + 1) for i in range(len(values))]


def _reward(axes: Axes, state: RunState) -> None:
    points = [(step.step, step.reward) for step in state.steps if step.reward is not None]
    x, y = [p[0] for p in points], [p[1] for p in points]
    window = min(max(LEAST_WINDOW, len(y) // 20), max(len(y) // 2, 1))
    size = 4 if len(y) > DENSE else 16
    axes.scatter(x, y, s=size, color=BLUE, alpha=0.35, linewidths=0, label="reward of a step")
    if window > 1:
        axes.plot(x, moving_average(y, window), color=BLUE, linewidth=2.2, label=f"mean of the last {window} steps")
    if min(y) >= 0:
        axes.set_ylim(bottom=0, top=max(max(y) * 1.08, 1e-9))
    axes.set_ylabel("mean reward")
    versions = [step.version for step in state.steps if step.version is not None]
    facts = [f"{len(points)} steps"]
    if versions:
        facts.append(f"versions {versions[0]} to {versions[-1]} published")
    if state.outcome is not None:
        facts.append(f"{state.outcome} after {duration(state.elapsed(state.last_at))}")
    axes.set_title(", ".join(facts), fontsize=9.5, color=INK, loc="left")
    axes.legend(loc="best", fontsize=8.5, framealpha=0.9, edgecolor="none")


def _mismatch(axes: Axes, state: RunState) -> None:
    means = [(step.step, step.mismatch) for step in state.steps if step.mismatch is not None]
    largest = [(step.step, step.mismatch_max) for step in state.steps if step.mismatch_max is not None]
    is_dense = len(means) > DENSE
    # Mean and largest differ by orders of magnitude; a mismatch of exactly zero has no place on a logarithmic axis.
    is_positive = all(value > 0 for _, value in means + largest)
    if is_positive and largest:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=7))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if largest:
        axes.plot(*zip(*largest, strict=True), color=RED, linewidth=0.6 if is_dense else 1.2, label="largest",
                  linestyle="-" if is_dense else (0, (3, 1.5)))  # fmt: skip
    axes.plot(*zip(*means, strict=True), color=ORANGE, linewidth=0.8 if is_dense else 1.8, label="mean")
    if not (is_positive and largest):
        axes.set_ylim(bottom=0)
    axes.set_ylabel("|Δ logp|")
    axes.set_title("mismatch of trainer and engine on the sampled tokens", fontsize=9.5, color=INK, loc="left")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=2, fontsize=8.5, frameon=False, borderpad=0)


def _sync(axes: Axes, state: RunState) -> None:
    points = [(step.step, step.sync_s) for step in state.steps if step.sync_s is not None]
    x, y = zip(*points, strict=True)
    is_dense = len(points) > DENSE
    axes.plot(x, y, color=GREY, linewidth=0.7 if is_dense else 1.2, marker="" if is_dense else "o", markersize=2.5)
    axes.set_ylim(bottom=0, top=max(max(y) * 1.15, 1e-9))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_ylabel("seconds")
    axes.set_title("time to publish a version", fontsize=9.5, color=INK, loc="left")

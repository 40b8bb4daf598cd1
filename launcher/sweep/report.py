"""The results of a sweep: a table for people, rows for programs, a CSV file and a picture."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.common.errors import UsageError
from launcher.common.text import aligned, duration, number
from launcher.config.metric import Metric
from launcher.sweep.ledger import ABOUT, Ledger
from launcher.sweep.status import Run, Status, counted, run_statuses

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FIXED = ("state", "step", "steps", "seconds", "job_id", "run_dir")


def open_sweep(directory: Path, metric: str | None) -> tuple[Ledger, Metric]:
    """The ledger and the metric of a sweep.

    Raises:
        UsageError: the directory holds no sweep.
    """
    ledger = Ledger(directory.absolute())
    if not ledger.exists():
        raise UsageError(
            f"{directory} holds no sweep. HINT: name the directory that `launcher -m` printed, OUTPUT_DIR/sweeps/NAME."
        )
    about = ledger.directory / ABOUT
    recorded = json.loads(about.read_text(encoding="utf-8"))["metric"] if about.exists() else "reward"
    return ledger, Metric.parse(metric or recorded)


def table(runs: Sequence[Run], metric: Metric) -> str:
    """One line for each run, and one for all of them."""
    names = settings(runs)
    header = (*names, "state", "step", str(metric), "time", "job", "run")
    rows = [header, *(_row(run, names) for run in runs)]
    right = (len(names) + 1, len(names) + 2, len(names) + 3)
    return "\n".join([*aligned(rows, right=right), "", f"{len(runs)} runs: {counted(run.status for run in runs)}"])


def as_data(run: Run, metric: Metric) -> dict[str, Any]:
    """A run as ``--json`` gives it."""
    return {
        "id": run.entry.identity,
        "overrides": dict(_split(word) for word in run.entry.overrides),
        "state": run.status.value,
        "why": run.why,
        "step": run.progress.steps,
        "steps": run.progress.planned,
        "metric": str(metric),
        "value": run.value,
        "seconds": run.progress.seconds,
        "job_id": run.entry.job_id,
        "run_dir": str(run.entry.run_dir) if run.entry.run_dir else None,
        "submitted": run.entry.submitted_at,
        "earlier": [str(path) for path in run.entry.earlier],
    }


def ranked(runs: Sequence[Run], metric: Metric) -> list[Run]:
    """The best first; runs without a value last."""
    sign = 1 if metric.lower_is_better else -1
    return sorted(runs, key=lambda run: (run.value is None, sign * (run.value or 0.0)))


def write_csv(runs: Sequence[Run], metric: Metric, path: Path) -> None:
    """One row for each run; the settings that were varied have a column each."""
    names = settings(runs)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*names, str(metric), *FIXED])
        for run in runs:
            data = as_data(run, metric)
            value = "" if run.value is None else repr(run.value)
            writer.writerow(
                [*(data["overrides"].get(name, "") for name in names), value, *(data[key] for key in FIXED)]
            )


def settings(runs: Sequence[Run]) -> list[str]:
    """The settings that the sweep varies, in the order of the command."""
    return list(dict.fromkeys(_split(word)[0] for run in runs for word in run.entry.overrides))


def setting(run: Run, name: str) -> str | float | None:
    """A run's value of a setting: a number if it is one."""
    text = dict(_split(word) for word in run.entry.overrides).get(name)
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return text
    return text if value is not None and not math.isfinite(value) else value


def read(ledger: Ledger, metric: Metric) -> list[Run]:
    """All runs, now."""
    return run_statuses(ledger, metric)


def _row(run: Run, names: Sequence[str]) -> tuple[str, ...]:
    values = dict(_split(word) for word in run.entry.overrides)
    progress = run.progress
    planned = f"/{progress.planned}" if progress.planned is not None else ""
    is_good = run.status in (Status.DONE, Status.RUNNING, Status.QUEUED, Status.MISSING)
    return (
        *(values.get(name, "-") for name in names),
        run.status + (f" ({run.why})" if run.why and not is_good else ""),
        f"{progress.steps}{planned}" if progress.steps else "-",
        number(run.value) if run.value is not None else "-",
        duration(progress.seconds) if progress.seconds is not None else "-",
        run.entry.job_id or "-",
        run.entry.run_dir.name if run.entry.run_dir is not None else "-",
    )


def _split(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return name.lstrip("+~"), value


MOST_PANELS = 4
NAMED_RUNS = 7
"""Curves with a colour and a name of their own: as many as the palette has colours."""


def draw_sweep(runs: Sequence[Run], metric: Metric, *, title: str) -> Figure:
    """All runs in one panel, and one panel for each setting.

    Args:
        runs: with a value each, the best first.
    """
    from matplotlib.figure import Figure

    from launcher.observe.plots.palette import INK

    names = settings(runs)[:MOST_PANELS]
    figure = Figure(figsize=(9, 4.2 + 3.2 * math.ceil(len(names) / 2)), layout="constrained")
    grid = figure.add_gridspec(1 + math.ceil(len(names) / 2), 2)
    figure.suptitle(f"{title}: {metric}", fontsize=12, color=INK)
    _curves(figure.add_subplot(grid[0, :]), runs, metric)
    for index, name in enumerate(names):
        _panel(figure.add_subplot(grid[1 + index // 2, index % 2]), runs, name, metric)
    return figure


def _curves(axes: Axes, runs: Sequence[Run], metric: Metric) -> None:
    from matplotlib.ticker import MaxNLocator

    from launcher.observe.plots.palette import INK, PALE_GREY, SEQUENCE, clean

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
    from launcher.observe.plots.palette import BLUE, INK, RED, clean

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

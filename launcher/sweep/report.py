"""What came of a sweep: a table for people, rows for programs, and a CSV file."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.common.errors import UsageError
from launcher.common.text import aligned, duration, number
from launcher.config.metric import Metric
from launcher.sweep.ledger import ABOUT, Ledger
from launcher.sweep.status import Run, Status, counted, run_statuses

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
    said = json.loads(about.read_text(encoding="utf-8"))["metric"] if about.exists() else "reward"
    return ledger, Metric.parse(metric or said)


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

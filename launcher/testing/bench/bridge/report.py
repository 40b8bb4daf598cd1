"""What was measured, as a table, as JSON and as a picture."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(kw_only=True)
class Result:
    """One way's measurements."""

    name: str
    seconds: list[float] = field(default_factory=list)
    extra_bytes: int = 0
    """GPU memory besides the tensors themselves; 0 on a CPU, where it is not measured."""

    sent_bytes: int | None = None
    """By one update, where that depends on what is in it."""

    def to_json(self, nbytes: int) -> dict[str, Any]:
        """Its numbers; rates count the bytes of the model once."""
        ordered = sorted(self.seconds)
        median = statistics.median(ordered)
        return {
            "name": self.name,
            "median_s": median,
            "p95_s": ordered[min(len(ordered) - 1, -(-95 * len(ordered) // 100) - 1)],
            "gb_per_s": nbytes / median / 1e9,
            "extra_bytes": self.extra_bytes,
            "sent_bytes": self.sent_bytes,
            "seconds": self.seconds,
        }


def report(results: list[Result], options: argparse.Namespace, nbytes: int) -> None:
    """Prints the table and writes the files.

    Args:
        nbytes: of the model.
    """
    rows = sorted((result.to_json(nbytes) for result in results), key=lambda row: float(row["median_s"]))
    facts = {
        "model": options.model,
        "bytes": nbytes,
        "workers": options.workers,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "repeats": options.repeats,
        "round_mb": options.round_mb,
        "ways": rows,
    }
    print(f"{options.model}: {nbytes / 1e6:,.0f} MB to {options.workers} worker(s) on {facts['device']}")
    print(f"{'':<42} {'median':>10} {'p95':>10} {'GB/s':>7} {'extra MB':>9} {'sent MB':>8}")
    for row in rows:
        times = f"{row['median_s'] * 1e3:>7.1f} ms {row['p95_s'] * 1e3:>7.1f} ms"
        sent = "" if row["sent_bytes"] is None else f"{row['sent_bytes'] / 1e6:.1f}"
        print(f"{row['name']:<42} {times} {row['gb_per_s']:>7.2f} {row['extra_bytes'] / 1e6:>9.0f} {sent:>8}")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "bench-bridge.json").write_text(json.dumps(facts, indent=2) + "\n")
        _draw(facts, options.out / "bench-bridge.png")


def _draw(facts: dict[str, Any], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = list(reversed(facts["ways"]))
    figure = Figure(figsize=(9, 0.4 * len(rows) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = ["#4477aa" if row["name"].startswith("ours") else "#bbbbbb" for row in rows]
    axes.barh([row["name"] for row in rows], [row["gb_per_s"] for row in rows], color=colours)
    for place, row in enumerate(rows):
        axes.text(row["gb_per_s"], place, f" {row['median_s'] * 1e3:.0f} ms", va="center", fontsize=8)
    axes.set_xlabel("GB/s of the model, median")
    axes.set_title(f"{facts['model']}, {facts['bytes'] / 1e6:,.0f} MB, {facts['workers']} worker(s), {facts['device']}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)

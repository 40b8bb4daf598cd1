"""What was measured, as a table with the aims, as JSON and as a picture."""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

RAW_PEER = "ceiling: raw peer copy"
ONE_PROCESS = "ceiling: copy within one process"
NCCL_PATTERNS = r"^(broadcast|send and receive|packed broadcast)"


@dataclass(kw_only=True)
class MethodResult:
    """One method's measurements."""

    name: str
    seconds: list[float] = field(default_factory=list)
    extra_bytes: int = 0
    """Peak of torch's GPU memory during an update, besides what was there before; 0 on a CPU, where it is not
    measured."""

    held_bytes: int = 0
    """GPU memory that the method holds from update to update, by the driver's count: its buffers, and what its library
    takes. On a GPU that ranks share, all of theirs."""

    sent_bytes: int | None = None
    """By one update, where that depends on what is in it."""

    @property
    def median_s(self) -> float:
        """Seconds of the median update."""
        return statistics.median(self.seconds)

    def to_json(self, nbytes: int, ceiling_s: float | None) -> dict[str, Any]:
        """Its numbers; rates count the bytes of the model once."""
        ordered = sorted(self.seconds)
        return {
            "name": self.name,
            "median_s": self.median_s,
            "p95_s": ordered[min(len(ordered) - 1, -(-95 * len(ordered) // 100) - 1)],
            "gb_per_s": nbytes / self.median_s / 1e9,
            "of_ceiling": None if ceiling_s is None else ceiling_s / self.median_s,
            "extra_bytes": self.extra_bytes,
            "held_bytes": self.held_bytes,
            "sent_bytes": self.sent_bytes,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What a method shall reach: ``limit`` is the least ratio of the other's time to its own."""

    method: str
    against: str
    """Regular expression; the fastest of those that match."""

    limit: float


AIMS = (
    Aim(method="ours: peer", against=f"^{RAW_PEER}$", limit=0.97),
    Aim(method="ours: peer, verified", against=f"^{RAW_PEER}$", limit=0.95),
    Aim(method="ours: peer, verified", against="^ours: peer$", limit=0.98),
    Aim(method="ours: ipc", against=f"^{ONE_PROCESS}$", limit=0.80),
    Aim(method="ours: ipc, verified", against=f"^{ONE_PROCESS}$", limit=0.67),
    Aim(method="ours: nccl", against=NCCL_PATTERNS, limit=1.0),
    Aim(method="ours: nccl, verified", against=NCCL_PATTERNS, limit=0.97),
)
EXTRA_BYTES = 64 << 20
"""Most that ``peer`` and ``ipc`` shall take."""

SMALLEST_MODEL = 1 << 30
"""Below, what is measured is latency, which the aims are not about."""


def report(results: Sequence[MethodResult], left_out: Sequence[str], options: argparse.Namespace, nbytes: int) -> None:
    """Prints the table and writes the files.

    Args:
        left_out: names of methods that were not measured because they would take minutes.
        nbytes: of the model.
    """
    by_name = {result.name: result for result in results}
    ceiling = next((by_name[name] for name in (RAW_PEER, ONE_PROCESS) if name in by_name), None)
    ceiling_s = None if ceiling is None else ceiling.median_s
    rows = sorted((result.to_json(nbytes, ceiling_s) for result in results), key=lambda row: float(row["median_s"]))
    aims = judged(by_name) if nbytes >= SMALLEST_MODEL else []
    facts = {
        "model": options.model,
        "bytes": nbytes,
        "workers": options.workers,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "repeats": options.repeats,
        "round_mb": options.round_mb,
        "ceiling": None if ceiling is None else ceiling.name,
        "left_out": list(left_out),
        "aims": aims,
        "ways": rows,
    }
    print(f"{options.model}: {nbytes / 1e6:,.0f} MB to {options.workers} worker(s) on {facts['device']}")
    print(
        f"{'':<42} {'median':>10} {'p95':>10} {'GB/s':>7} {'ceiling':>8} {'extra MB':>9} {'held MB':>8} {'sent MB':>8}"
    )
    for row in rows:
        times = f"{row['median_s'] * 1e3:>7.1f} ms {row['p95_s'] * 1e3:>7.1f} ms"
        sent = "" if row["sent_bytes"] is None else f"{row['sent_bytes'] / 1e6:.1f}"
        ratio = "" if row["of_ceiling"] is None else f"{row['of_ceiling']:.2f}"
        extra = f"{row['extra_bytes'] / 1e6:>9.0f} {row['held_bytes'] / 1e6:>8.0f}"
        print(f"{row['name']:<42} {times} {row['gb_per_s']:>7.2f} {ratio:>8} {extra} {sent:>8}")
    for name in left_out:
        print(f"left out, as it takes long or much memory: {name}  (name it with --only)")
    for aim in aims:
        print(f"{'met' if aim['is_met'] else 'missed':<7} {aim['text']}")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "bench-bridge.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        _draw(facts, options.out / "bench-bridge.png")


def judged(results: dict[str, MethodResult]) -> list[dict[str, Any]]:
    """Each aim that the measured methods can be held against, whether it is met, and by which numbers."""
    found = []
    for aim in AIMS:
        others = [r for name, r in results.items() if re.search(aim.against, name) and name != aim.method]
        if aim.method not in results or not others:
            continue
        best = min(others, key=lambda result: result.median_s)
        ratio = best.median_s / results[aim.method].median_s
        text = f"{aim.method}: {ratio:.3f} of `{best.name}`, aim {aim.limit:.2f}"
        found.append({"text": text, "is_met": ratio >= aim.limit})
    for method in ("ours: peer", "ours: peer, verified", "ours: ipc", "ours: ipc, verified"):
        if method in results:
            extra = max(results[method].extra_bytes, results[method].held_bytes)
            text = f"{method}: {extra / 2**20:.1f} MiB of extra memory, aim {EXTRA_BYTES >> 20} MiB"
            found.append({"text": text, "is_met": extra < EXTRA_BYTES})
    return found


def _draw(facts: dict[str, Any], path: Path) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: matplotlib is not installed")
        return

    rows = list(reversed(facts["ways"]))
    figure = Figure(figsize=(9, 0.4 * len(rows) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = ["#4477aa" if row["name"].startswith("ours") else "#bbbbbb" for row in rows]
    axes.barh([row["name"] for row in rows], [row["gb_per_s"] for row in rows], color=colours)
    for place, row in enumerate(rows):
        ratio = "" if row["of_ceiling"] is None else f", {row['of_ceiling']:.2f} of the ceiling"
        axes.text(row["gb_per_s"], place, f" {row['median_s'] * 1e3:.0f} ms{ratio}", va="center", fontsize=8)
    axes.set_xlabel("GB/s of the model, median")
    axes.set_title(f"{facts['model']}, {facts['bytes'] / 1e6:,.0f} MB, {facts['workers']} worker(s), {facts['device']}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.2)
    figure.savefig(path, dpi=120)

"""A directory of several runs: which there are, with what they differ in, and the curve of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launcher.events.reader import attempts, events_path
from launcher.observe.find import is_run, run_dirs, submitted_at
from launcher.observe.run_status import statuses
from launcher.observe.run_summary import RunSummary, summarize
from launcher.sweep.ledger import Ledger

MOST_POINTS = 120
MOST_CURVES = 60
"""Of so many runs, the newest, the rewards are drawn."""


def is_sweep(directory: Path) -> bool:
    """Whether ``directory`` is what ``launcher -m`` printed."""
    return Ledger(directory).exists()


class SweepReader:
    """All runs of one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._curves: dict[Path, tuple[int, list[list[float]]]] = {}

    def runs(self) -> dict[str, Path]:
        """Run directories by name: those of a sweep's ledger, or those that lie here."""
        entries = Ledger(self.directory).entries().values()
        made = [entry.run_dir for entry in entries if entry.run_dir is not None and is_run(entry.run_dir)]
        found = made if is_sweep(self.directory) else run_dirs(self.directory)
        return {path.name: path for path in sorted(found, key=submitted_at)}

    def data(self) -> dict[str, Any]:
        """One entry per run, in the order of their submission."""
        paths = self.runs()
        overrides = self._overrides()
        found, _ = statuses([summarize(path) for path in paths.values()], is_asking=False)
        drawn = set(list(paths.values())[-MOST_CURVES:])
        return {
            "name": self.directory.name,
            "runs": [
                {
                    "name": run.path.name,
                    "overrides": overrides.get(run.path.name, []),
                    "word": status.word,
                    "is_over": status.is_over,
                    "is_certain": status.is_certain or run.outcome is not None,
                    "submitted": run.submitted,
                    "nodes": run.nodes,
                    "job": run.job_id,
                    "step": run.step,
                    "steps": run.steps,
                    "reward": run.reward,
                    "curve": self._curve(run) if run.path in drawn else [],
                }
                for status in found
                for run in [status.summary]
            ],
        }

    def _overrides(self) -> dict[str, list[str]]:
        """By the name of the run, from the sweep's ledger; nothing where there is none."""
        entries = Ledger(self.directory).entries().values()
        return {entry.run_dir.name: list(entry.overrides) for entry in entries if entry.run_dir is not None}

    def _curve(self, run: RunSummary) -> list[list[float]]:
        """Step and reward, thinned out; read anew only when the log has grown."""
        logs = [events_path(run.path, attempt) for attempt in attempts(run.path)]
        grown = sum(log.stat().st_size for log in logs)
        if run.path not in self._curves or self._curves[run.path][0] != grown:
            points: dict[int, float] = {}
            for log in logs:
                points |= _rewards(log)
            ordered = [[step, points[step]] for step in sorted(points)]
            stride = max(len(ordered) // MOST_POINTS, 1)
            self._curves[run.path] = (grown, ordered[::stride])
        return self._curves[run.path][1]


def _rewards(log: Path) -> dict[int, float]:
    found: dict[int, float] = {}
    for line in log.read_bytes().split(b"\n"):
        if b'"step"' not in line or b'"reward"' not in line:
            continue
        try:
            event = json.loads(line)
            if event.get("event") == "step":
                found[int(event["step"])] = float(event["reward"])
        except (ValueError, TypeError, KeyError):
            continue  # being written, or without a reward
    return found

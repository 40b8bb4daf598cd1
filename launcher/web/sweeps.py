"""A directory of several runs: which there are, with what they differ in, and the curve of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.events.reader import RunFollower
from launcher.observe.find import is_run, run_dirs, submitted_at
from launcher.observe.run_status import statuses
from launcher.observe.run_summary import summarize
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
        self._followers: dict[Path, RunFollower] = {}

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
        found, _ = statuses([summarize(path) for path in paths.values()], may_query=False)
        drawn = set(list(paths.values())[-MOST_CURVES:])
        return {
            "name": self.directory.name,
            "runs": [
                {
                    "name": run.path.name,
                    "overrides": overrides.get(run.path.name, []),
                    "word": status.state,
                    "is_over": status.is_over,
                    "is_certain": status.is_certain or run.outcome is not None,
                    "submitted": run.submitted,
                    "nodes": run.nodes,
                    "job": run.job_id,
                    "step": run.step,
                    "steps": run.steps,
                    "reward": run.reward,
                    "curve": self._curve(run.path) if run.path in drawn else [],
                }
                for status in found
                for run in [status.summary]
            ],
        }

    def _overrides(self) -> dict[str, list[str]]:
        """By the name of the run, from the sweep's ledger; nothing where there is none."""
        entries = Ledger(self.directory).entries().values()
        return {entry.run_dir.name: list(entry.overrides) for entry in entries if entry.run_dir is not None}

    def _curve(self, run: Path) -> list[list[float]]:
        """Step and reward, thinned out."""
        follower = self._followers.setdefault(run, RunFollower(run))
        follower.read()
        points = [[step.step, step.reward] for step in follower.state.steps if step.reward is not None]
        return points[:: max(len(points) // MOST_POINTS, 1)]

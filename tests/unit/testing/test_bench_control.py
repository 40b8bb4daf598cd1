"""The bench of commands: its runs look like runs to the commands it measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.testing.bench.control import Cost, _verdicts, make_runs


def test_its_runs_are_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_runs(tmp_path, runs=5, nodes=4)
    assert len(made) == 5
    assert main(["runs", "--all", "--json", "--output-dir", str(tmp_path)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert "completed" in json.dumps(shown)
    assert main(["status", str(made[1]), "--json"]) == 0
    assert "completed" in capsys.readouterr().out


def test_a_submission_may_cost_so_many_empty_programs_and_one_sbatch() -> None:
    costs = [
        Cost(name="an empty @hydra.main program", wall_s=1.0, work_s=0.5),
        Cost(name="sbatch of an empty script", wall_s=0.25, work_s=0.25),
        Cost(name="launcher +cluster=slurm", wall_s=1.75, work_s=1.125),
        Cost(name="plan, 9 nodes", wall_s=3.0, work_s=1.5),
    ]
    verdicts = {name: (verdict["limit"], verdict["ok"]) for name, verdict in _verdicts(costs).items()}
    assert verdicts == {
        "plan, 9 nodes": (1.0, False),
        "launcher +cluster=slurm, wall_s": (1.75, True),
        "launcher +cluster=slurm, work_s": (1.0, False),
    }

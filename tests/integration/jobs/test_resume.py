"""The reference trainer, asked to stop on this machine, and resumed: real engines serve the weights that were saved."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.checkpoint.store import latest_step
from launcher.common.errors import STOPPED
from tests.integration.jobs.launched import ROOT, Launcher

pytestmark = pytest.mark.engine

STEPS = 8


def test_a_stopped_run_resumes(launcher: Launcher, model: Path) -> None:
    job = launcher(f"model.path={model}", f"trainer.steps={STEPS}", "checkpoint.every_steps=0")
    job.wait_event("step", step=2, timeout_s=180)
    for _ in range(3):
        job.process.send_signal(signal.SIGUSR2)
    assert job.wait(120) == STOPPED, job.output
    assert f"launcher resume {job.run_dir}" in job.output
    assert [e["reason"] for e in job.events if e["event"] == "stopping"] == ["request"]
    last = max(e["step"] for e in job.events if e["event"] == "step")
    assert latest_step(job.run_dir / "checkpoint") == last < STEPS
    job.mark.wait_gone(10)

    resume = [sys.executable, "-m", "launcher", "resume", str(job.run_dir)]
    done = subprocess.run(resume, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"resuming from the checkpoint of step {last}" in done.stdout
    events = second_attempt(job.run_dir)
    assert [e["step"] for e in events if e["event"] == "resumed"] == [last]
    assert [e["step"] for e in events if e["event"] == "step"] == list(range(last + 1, STEPS + 1))
    # What the engine sampled with, right after the restart, is what the trainer had restored.
    first = next(e for e in events if e["event"] == "step")
    assert first["mismatch_max"] < 1e-3
    # After the first version, and at the end.
    assert [e["ok"] for e in events if e["event"] == "check"] == [True, True]

    again = subprocess.run(resume, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 2
    assert "is completed: there is nothing left to do" in again.stderr


def second_attempt(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "attempts" / "2" / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]

"""A soak: what it makes of the events of its run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.testing.chaos import processes
from launcher.testing.chaos.processes import ProcessMemory
from launcher.testing.chaos.soak import Fault, SoakResult, evaluate_soak, report
from tests.unit.testing.test_faults import by_attempt


def steps(first: int, last: int, reward: float, attempt: int = 1) -> list[dict[str, Any]]:
    return [{"event": "step", "step": step, "reward": reward, "attempt": attempt} for step in range(first, last + 1)]


def saved(step: int) -> dict[str, Any]:
    return {"event": "checkpoint", "state": "end", "step": step, "attempt": 1}


def test_training_that_goes_on_from_its_checkpoints_is_no_surprise() -> None:
    resumed = {"event": "resumed", "step": 20, "attempt": 1}
    events = [*steps(1, 20, 0.2), saved(20), *steps(21, 21, 0.2), resumed, *steps(21, 40, 0.5), *steps(41, 60, 0.4, 2)]
    result = SoakResult(faults=[Fault(name="USR2", at=60.0, step=21, noticed_s=0.5, back_s=12.0)], minutes=2.0)
    evaluate_soak(result, by_attempt(events))
    assert (result.attempts, result.steps, result.redone, result.surprises) == (2, 60, 1, [])
    assert result.rewards == pytest.approx((0.2, 0.4))
    assert result.fall == pytest.approx(0.1)
    told = report(result)
    assert "2 minutes, 1 faults, 2 attempts, 60 steps (1 done again after a restart)" in told
    assert "noticed after 0.5 s (median; at most 0.5 s); the next step after 12.0 s" in told


def test_steps_that_were_saved_and_lost_are_a_surprise() -> None:
    resumed = {"event": "resumed", "step": 2, "attempt": 2}
    result = SoakResult(leaks=["process 7: python"])
    evaluate_soak(result, by_attempt([*steps(1, 4, 0.2), saved(2), saved(4), resumed, *steps(3, 4, 0.2, 2)]))
    assert result.surprises == ["resumed from step 2, though 4 was saved", "left behind: 1"]


def test_memory_of_agents_is_measured_once_they_are_warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "WARM_UP_S", 0.0)
    monkeypatch.setattr(processes, "MEMORY_INTERVAL_S", 0.0)
    program = (
        "print('up', flush=True); input(); kept = bytearray(b'x') * (64 << 20); print('more', flush=True); input()"
    )
    words = [sys.executable, "-c", program, "launcher.node", str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdin is not None and agent.stdout is not None
        memory = ProcessMemory(tmp_path)
        for word in ("up", "more"):
            assert agent.stdout.readline() == f"{word}\n"
            memory.sample()
            print(file=agent.stdin, flush=True)
        ((name, (early, late)),) = memory.grown().items()
    assert name == f"agent {agent.pid}"
    assert 60 < late - early < 70

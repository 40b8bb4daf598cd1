"""SLURM's programs where the controller is busy: what a node needs of them waits for their answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.slurm.client import NOTICE_S
from launcher.slurm.job_signals import requeue
from tests.unit.slurm_tools import calls, tool, tools

__all__ = ["tools"]


@pytest.mark.slow
def test_a_job_is_queued_again_by_a_controller_that_answers_late(
    tools: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tool(tools, "scontrol", f"sleep {NOTICE_S + 1}")
    assert requeue({"SLURM_JOB_ID": "7"}) is None
    assert calls(tools) == ["scontrol requeue 7"]
    assert "launcher: still waiting for SLURM (`scontrol requeue 7`; at most 30 s) ..." in capfd.readouterr().err

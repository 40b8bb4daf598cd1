"""What may die in a run that completes all the same; every death is real, and so are the engines."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from launcher.agent.shared_memory import used
from tests.jobs.launched import Launched, Launcher
from tests.slurm.processes import descendants

pytestmark = [pytest.mark.engine]

SHM = Path("/dev/shm")


def steps(job: Launched) -> list[int]:
    return [event["step"] for event in job.events if event["event"] == "step"]


def restarts(job: Launched, what: str) -> list[dict[str, object]]:
    return [event for event in job.events if event["event"] == "restart" and event["what"] == what]


def test_an_engine_that_is_killed_comes_back_with_the_last_version(launcher: Launcher, model: Path) -> None:
    job = launcher(f"model.path={model}", "trainer.steps=6")
    job.wait_event("step", step=2, timeout_s=240)
    server = job.wait_process("inference-0")
    pids = [server, *(process.pid for process in descendants(server))]
    memory = set().union(*(used(pid) for pid in pids))
    assert memory
    # All of it at once, the process that removes its shared memory included.
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    job.wait_event("replica", replica=0, state="restarting")
    ready = job.wait_event("replica", replica=0, state="ready", timeout_s=240)
    assert job.wait(240) == 0, job.output
    assert ready["version"] in steps(job)
    assert steps(job) == [1, 2, 3, 4, 5, 6]
    assert [event["restart"] for event in restarts(job, "engine")] == [1]
    assert not restarts(job, "trainer")
    check = job.event("check")
    assert check is not None and check["ok"]
    assert not [name for name in memory if (SHM / name).exists()]

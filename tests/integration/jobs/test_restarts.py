"""What may die in a run that completes all the same; every death is real, and so are the engines."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher.node.stale_resources import used
from tests.integration.jobs.launched import Launched, Launcher
from tests.integration.jobs.logged import select
from tests.slurm_cluster.processes import descendants

pytestmark = [pytest.mark.engine]

SHM = Path("/dev/shm")

SLOW_S = 300
"""On a busy machine an engine takes minutes."""


def all_events(job: Launched, event: str, **fields: Any) -> list[dict[str, Any]]:
    return select(job.events, event, **fields)


def kill_all(pids: Sequence[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_a_run_survives_its_engine_its_trainer_and_an_engine_that_hangs(launcher: Launcher, model: Path) -> None:
    settings = ("trainer.steps=10", "checkpoint.every_steps=2", "restart.stopped_process_timeout_s=2")
    job = launcher(f"model.path={model}", *settings)

    # All of the engine at once, the process that removes its shared memory included.
    job.wait_event("step", step=3, timeout_s=SLOW_S)
    server = job.wait_process("inference-0")
    engine = [server, *(process.pid for process in descendants(server))]
    memory = set().union(*(used(pid) for pid in engine))
    assert memory
    kill_all(engine)
    job.wait_event("replica", replica=0, state="restarting")
    job.wait_event("replica", replica=0, state="ready", timeout_s=SLOW_S)
    job.wait_event("step", step=5, timeout_s=SLOW_S)
    assert not [name for name in memory if (SHM / name).exists()]
    assert not all_events(job, "restart", what="trainer")

    # The trainer goes on from its checkpoint; the engine has newer weights than that by now, and stays.
    kill_all([job.wait_process("trainer-0000")])
    job.wait_event("restart", what="trainer")
    resumed = job.wait_event("resumed", timeout_s=SLOW_S)
    again = job.wait_event("process", name="trainer-0000", state="started", restart_count=1)

    # One process of the engine stops; its server still says that it is healthy.
    job.wait_event("step", step=7, timeout_s=SLOW_S)
    pid = all_events(job, "process", name="inference-0", state="started")[-1]["pid"]
    (core,) = [process.pid for process in descendants(pid) if "EngineCor" in process.name]
    os.kill(core, signal.SIGSTOP)
    job.wait_event("restart", what="engine", counted_restarts=2)

    assert job.wait(SLOW_S) == 0, job.output
    steps = [event["step"] for event in all_events(job, "step")]
    begin = resumed["step"]
    assert begin in {2, 4}
    # What was done since the checkpoint is done once more; nothing else is, and nothing is left out.
    cut = next(index for index, event in enumerate(all_events(job, "step")) if event["time"] > again["time"])
    assert steps[:cut] == list(range(1, steps[cut - 1] + 1))
    assert steps[cut:] == list(range(begin + 1, 11))
    assert [event["counted_restarts"] for event in all_events(job, "restart", what="engine")] == [1, 2]
    assert [event["counted_restarts"] for event in all_events(job, "restart", what="trainer")] == [1]
    assert all(check["ok"] for check in all_events(job, "check"))


WAITS = """
import json, os, pathlib, sys, time
from launcher.inference.client import inference_urls
folder = pathlib.Path(sys.argv[1])
name = f"{os.environ['RANK']}-{os.environ['LAUNCHER_RESTART_COUNT']}"
keys = ("LAUNCHER_HOSTNAME", "LAUNCHER_NODE_RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
keys += ("LAUNCHER_INFERENCE_URLS",)
(folder / f"{name}.json").write_text(json.dumps({key: os.environ[key] for key in keys}))
while not (folder / "go").exists():
    time.sleep(0.1)
(folder / f"{name}.urls").write_text(json.dumps(inference_urls()))
"""


def test_spares_take_the_places_of_lost_nodes_of_either_role(launcher: Launcher, model: Path, tmp_path: Path) -> None:
    words = ", ".join("'" + word.replace("'", "\\'") + "'" for word in ("python", "-c", WAITS, str(tmp_path)))
    shape = ("layout.nodes=3", "layout.inference_nodes=1", "layout.spares=2", "lease_timeout_s=6")
    job = launcher(f"model.path={model}", *shape, f"trainer.command=[{words}]")
    assert "3     node-0003  spare" in job.output or job.wait_event("node_up")
    first = job.wait_process("inference-0", SLOW_S)
    for rank in (0, 1):
        job.wait_process(f"trainer-{rank:04d}")

    # A node whose agent stops: its shim ends it, and by then the run goes on elsewhere.
    os.kill(job.agent(2), signal.SIGSTOP)
    taken = job.wait_event("spare", slot=2)
    assert (taken["node_rank"], taken["hostname"], taken["role"]) == (3, "local-3", "inference")
    job.wait_event("process", name="inference-0", state="started", restart_count=1)
    assert not all_events(job, "restart")

    # A node that is gone at once, with everything on it.
    shim = job.shim(1)
    kill_all([process.pid for process in descendants(shim)] + [shim])
    taken = job.wait_event("spare", slot=1)
    assert (taken["node_rank"], taken["role"]) == (4, "trainer")
    for rank in (0, 1):
        job.wait_event("process", name=f"trainer-{rank:04d}", state="started", restart_count=1)
    assert [event["node_rank"] for event in all_events(job, "node_lost")] == [2, 1]

    (tmp_path / "go").touch()
    assert job.wait(SLOW_S) == 0, job.output
    assert not Path(f"/proc/{first}").exists()
    told = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    for environ in told.values():  # for programs that do not import the launcher
        assert re.fullmatch(r"http://[\d.]+:\d+", environ.pop("LAUNCHER_INFERENCE_URLS"))
    assert told["1-1"] == {
        "LAUNCHER_HOSTNAME": "local-4",
        "LAUNCHER_NODE_RANK": "1",
        "WORLD_SIZE": "2",
        "TORCHELASTIC_RESTART_COUNT": "1",
    }
    assert told["0-1"]["LAUNCHER_HOSTNAME"] == "local-0"

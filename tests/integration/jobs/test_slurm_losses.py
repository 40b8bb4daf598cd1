"""Nodes of a real SLURM that are cut off or killed under a run that completes all the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.jobs.logged import select
from tests.integration.jobs.test_restarts import WAITS
from tests.integration.jobs.test_slurm_job import RELEASE_S, Submitted, submit
from tests.slurm_cluster.cluster import NODES, SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.engine]

SLOW_S = 120


@pytest.fixture
def separated() -> Iterator[SlurmCluster]:
    with SlurmCluster(NODES, isolation="net") as cluster:
        yield cluster


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = SLOW_S) -> float:
    """Seconds until it holds."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < timeout_s, what
        time.sleep(0.1)
    return time.monotonic() - begin


def events(job: Submitted, event: str, **fields: Any) -> list[dict[str, Any]]:
    return select(job.events, event, **fields)


def test_a_run_outlives_a_cut_that_heals_one_that_does_not_and_a_node_that_is_killed(
    separated: SlurmCluster, tmp_path: Path, model: Path
) -> None:
    words = ", ".join("'" + word.replace("'", "\\'") + "'" for word in ("python", "-c", WAITS, str(tmp_path)))
    shape = ("layout.nodes=3", "layout.inference_nodes=2", "layout.spares=1", "lease_timeout_s=8")
    job = submit(separated, tmp_path, f"model.path={model}", *shape, f"trainer.command=[{words}]")
    assert job.code == 0, job.output
    wait_until(lambda: events(job, "process", name="trainer-0000"), "the trainer to start")
    wait_until(lambda: len(events(job, "process", role="inference")) == 2, "the engines to start")

    separated.cut("rack0n02")
    time.sleep(4)
    separated.heal("rack0n02")
    time.sleep(4)
    assert not events(job, "node_lost")

    separated.cut("rack0n02")
    wait_until(lambda: events(job, "spare"), "the spare to take the place of the node that was cut off", 30)
    (spare,) = events(job, "spare")
    assert (spare["hostname"], spare["slot"], spare["role"]) == ("rack1n02", 1, "inference")
    (lost,) = events(job, "node_lost")
    assert (lost["hostname"], lost["role"]) == ("rack0n02", "inference")

    def served_by() -> list[str]:
        return [p.command for p in separated.node_processes("rack0n02") if "launcher." in p.command]

    wait_until(lambda: not served_by(), "the node that was cut off to end what it runs", 30)
    wait_until(
        lambda: events(job, "process", name="inference-0", restart_count=1), "the engine to start on the spare", 30
    )

    separated.crash_node("rack1n01")
    wait_until(lambda: events(job, "replica", replica=1, state="dropped"), "the replica to be dropped", 30)
    assert not events(job, "restart")

    (tmp_path / "go").touch()
    wait_until(lambda: events(job, "finished", outcome="completed"), "the run to end")
    # The nodes that can be reached are given back; SLURM still waits for the others, until it takes them for down.
    begin = time.monotonic()
    separated.wait_job(job.job_id, ["COMPLETING", "COMPLETED"])
    assert time.monotonic() - begin < 2 * RELEASE_S
    wait_until(lambda: not separated.node_processes("rack0n01"), "node 0 to be given back", 2 * RELEASE_S)
    separated.heal("rack0n02")
    separated.start_node("rack1n01")
    separated.wait_job(job.job_id, ["COMPLETED"], timeout_s=SLOW_S)

"""A whole run on a real SLURM whose nodes have addresses of IPv6 alone: control, requests and weights go over them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.jobs.logged import select
from tests.integration.jobs.submitted import submit
from tests.slurm_cluster.cluster import SlurmCluster
from tests.slurm_cluster.spec import missing_requirements

pytestmark = [pytest.mark.engine, pytest.mark.slurm]


@pytest.fixture
def ipv6() -> Iterator[SlurmCluster]:
    cluster = SlurmCluster("node[0-1]", isolation="net6")
    if not os.environ.get("CI") and (missing := missing_requirements(cluster.spec)):
        pytest.skip("; ".join(missing))
    with cluster:
        yield cluster


def test_a_run_completes_where_nodes_have_addresses_of_ipv6_alone(
    ipv6: SlurmCluster, tmp_path: Path, model: Path
) -> None:
    settings = ("trainer.steps=3", "inference.enforce_eager=true", "bridge.transport=gloo")
    job = submit(ipv6, tmp_path, f"model.path={model}", "cluster.wait=true", *settings)
    assert job.code == 0, job.output
    assert "http://[fd00:77::2]:" in select(job.events, "engine_ready")[0]["url"]
    assert [event["version"] for event in select(job.events, "step")] == [1, 2, 3]
    assert [event["ok"] for event in select(job.events, "check")][-1]
    ipv6.wait_empty()

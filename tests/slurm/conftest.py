"""Clusters that all tests of a session share; a test leaves them empty (``cancel_all``)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import SlurmCluster
from tests.slurm.spec import missing_requirements

NODES = "rack[0-1]n[01-02]"


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """Four nodes with eight fake GPUs each, without accounting."""
    yield from _shared(SlurmCluster(NODES))


@pytest.fixture(scope="session")
def slurm_accounting() -> Iterator[SlurmCluster]:
    """The same with slurmdbd and MariaDB, so that ``sacct`` answers."""
    yield from _shared(SlurmCluster(NODES, accounting=True))


def _shared(cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    # Where tests must count, a machine without SLURM is a failure (that start() explains), never a skip.
    if not os.environ.get("CI") and (missing := missing_requirements(cluster.spec)):
        pytest.skip("; ".join(missing))
    with cluster:
        yield cluster

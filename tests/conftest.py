"""What all tests share: the marker ``fast``, and SLURM clusters that each test finds empty."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm_cluster.cluster import NODES, SlurmCluster
from tests.slurm_cluster.spec import missing_requirements

UNIT = Path(__file__).parent / "unit"
NOT_FAST = {"slow", "slurm", "engine", "browser", "gpu"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as ``fast`` what needs nothing but Python: every unit test without a marker that says otherwise."""
    for item in items:
        if UNIT in item.path.parents and not NOT_FAST & {mark.name for mark in item.iter_markers()}:
            item.add_marker(pytest.mark.fast)


@pytest.fixture(scope="session")
def shared_slurm() -> Iterator[SlurmCluster]:
    """One cluster for all tests that ask for :func:`slurm`."""
    yield from _shared(SlurmCluster(NODES))


@pytest.fixture(scope="session")
def shared_slurm_accounting() -> Iterator[SlurmCluster]:
    """One cluster for all tests that ask for :func:`slurm_accounting`."""
    yield from _shared(SlurmCluster(NODES, accounting=True))


@pytest.fixture
def slurm(shared_slurm: SlurmCluster) -> Iterator[SlurmCluster]:
    """Four nodes with eight fake GPUs each, without accounting. What a test that failed left running is ended."""
    yield shared_slurm
    shared_slurm.cancel_all()


@pytest.fixture
def slurm_accounting(shared_slurm_accounting: SlurmCluster) -> Iterator[SlurmCluster]:
    """The same with slurmdbd and MariaDB, so that ``sacct`` answers."""
    yield shared_slurm_accounting
    shared_slurm_accounting.cancel_all()


def _shared(cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    # Where tests must count, a machine without SLURM is a failure (that start() explains), never a skip.
    if not os.environ.get("CI") and (missing := missing_requirements(cluster.spec)):
        pytest.skip("; ".join(missing))
    with cluster:
        yield cluster

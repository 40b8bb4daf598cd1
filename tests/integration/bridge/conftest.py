"""Processes for the transfer tests, started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.bridge.peer_process import Pool


@pytest.fixture(scope="session")
def processes() -> Iterator[Pool]:
    """Processes that live as long as the tests need them."""
    found = Pool()
    yield found
    found.end()


@pytest.fixture
def pool(processes: Pool) -> Iterator[Pool]:
    """The same processes, but for those that a test has used up."""
    yield processes
    processes.settle()

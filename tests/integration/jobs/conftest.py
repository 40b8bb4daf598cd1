"""What the tests of whole jobs share: one tiny model, and what starts them on this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.jobs.launched import ROOT, Launched, Launcher
from tests.unit.processes import Mark


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny model, made once, so that a job need not make its own."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    subprocess.run([sys.executable, "-m", "launcher.trainers.grpo.tiny_model", str(path)], cwd=ROOT, check=True)
    return path


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    """Starts ``python -m launcher`` on this machine; nothing of it may be left when the test has ended."""
    mark = Mark()
    started: list[Launched] = []

    def start(*overrides: str, **env: str) -> Launched:
        launched = Launched([f"output_dir={tmp_path / 'runs'}", *overrides], tmp_path, mark, env)
        started.append(launched)
        return launched

    yield start
    left = mark.left()
    mark.kill()
    for launched in started:
        launched.process.wait(30)
    assert not left, "\n".join(process.command for process in left)

"""The programs of the page about extending do what it says."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from launcher.config import compose
from launcher.layout import plan
from launcher.preflight.context import CheckContext
from launcher.trainers.grpo.tasks import Options, make_task
from tests.unit.documents import files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the programs lie; on the path of modules."""
    for name, text in files().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def program(folder: Path, request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """One of them, imported."""
    yield import_module(request.param)
    del sys.modules[request.param]


@pytest.mark.parametrize("program", ["polite_cluster"], indirect=True)
def test_the_cluster_rejects_a_run_on_a_busy_machine(program: ModuleType) -> None:
    cluster = program.PoliteCluster(compose())
    cluster.busy_load = float("inf")
    assert cluster.check() == []
    cluster.busy_load = -1.0
    assert "HINT" in cluster.check()[0]


@pytest.mark.parametrize("program", ["check_swap"], indirect=True)
def test_the_preflight_check_finds_what_is_swapped_out(program: ModuleType, tmp_path: Path) -> None:
    assert program.used_swap_mb("SwapTotal: 4096 kB\nSwapFree: 1024 kB\nHugepagesize: 2048 kB\n") == 3.0
    config = compose()
    layout = plan(config)
    context = CheckContext(
        config=config,
        layout=layout,
        node=layout.nodes[0],
        run_dir=tmp_path,
        attempt_dir=tmp_path,
        model_path=None,
        address="127.0.0.1",
        scratch=tmp_path,
        is_simulated=True,
    )
    finding = program.check_swap(context)
    assert finding.name == "swap" and "swapped out on node 0" in finding.text


@pytest.mark.parametrize("program", ["my_tasks"], indirect=True)
def test_the_task_is_found_by_its_module_and_class(program: ModuleType) -> None:
    task = make_task("my_tasks:Larger", Options())
    (problem,) = task.draw(1, random.Random(0))
    assert problem.answer in problem.prompt
    assert task.reward(problem, problem.answer, finished=True) == 1.0
    assert task.reward(problem, "", finished=True) == 0.0

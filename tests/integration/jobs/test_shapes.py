"""Layouts other than the default one, each as a whole job: shared nodes, replicas over nodes, a wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.integration.jobs.launched import ROOT, Launcher
from tests.integration.jobs.logged import select


@pytest.mark.engine
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(["layout.nodes=1", "layout.inference_nodes=0", "layout.gpus_per_node=2"], id="local-mode"),
        pytest.param(
            ["layout.nodes=4", "layout.inference_nodes=2", "inference.tensor_parallel_size=2"],
            id="two-trainer-nodes-and-a-replica-over-two-nodes",
        ),
    ],
)
def test_a_layout_trains_and_its_engine_ends_with_the_trainers_weights(
    launcher: Launcher, model: Path, shape: list[str]
) -> None:
    launched = launcher(f"model.path={model}", "trainer.steps=2", *shape)
    assert launched.wait(300) == 0, launched.output
    checks = select(launched.events, "check")
    assert any("serves the trainer's weights" in check["name"] for check in checks), launched.output
    assert all(check["ok"] for check in checks)
    assert [event["version"] for event in launched.events if event["event"] == "step"] == [1, 2]


def test_an_installed_wheel_finds_its_presets_and_templates(tmp_path: Path) -> None:
    built = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(built, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    home = tmp_path / "venv"
    # Its dependencies are those of this environment; the launcher itself is the wheel's.
    venv.create(home, with_pip=False)
    (site,) = home.glob("lib/python*/site-packages")
    installed = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(installed, check=True)
    dependencies = next(path for path in sys.path if path.endswith("site-packages"))
    environ = {**os.environ, "PYTHONPATH": dependencies, "PYTHONSAFEPATH": "1"}
    program = "import launcher.cli, sys; sys.exit(launcher.cli.main())"
    python = [str(home / "bin" / "python"), "-c", f"import sys; sys.path.insert(0, {str(site)!r}); {program}"]
    shown = subprocess.run(
        [*python, "plan"], env=environ, cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert "node-0001  inference" in shown
    found = subprocess.run(
        [
            *python[:2],
            f"import sys; sys.path.insert(0, {str(site)!r}); from launcher.common.paths import *;"
            " print(conf_dir(), (sbatch_templates_dir() / 'plain.sbatch.j2').is_file())",
        ],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert found[0].startswith(str(site))
    assert found[1] == "True"

"""Layouts other than the default one, each as a whole job: shared nodes, replicas over nodes, a wheel, a hand-made
job.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.jobs.launched import ROOT, Launcher, run_dir_of
from tests.slurm.cluster import SlurmCluster


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
    check = launched.event("check")
    assert check is not None, launched.output
    assert check["ok"]
    assert [event["version"] for event in launched.events if event["event"] == "step"] == [1, 2]


@pytest.mark.slurm
@pytest.mark.engine
def test_a_prepared_run_directory_is_submitted_by_hand(slurm: SlurmCluster, tmp_path: Path, model: Path) -> None:
    prepared = slurm.run(
        [
            sys.executable,
            "-m",
            "launcher",
            "+cluster=slurm",
            "submit=false",
            f"output_dir={tmp_path / 'runs'}",
            f"model.path={model}",
            "layout.nodes=3",
            'trainer.command=[python,-c,"print(1)"]',
        ],
        PYTHONPATH=str(ROOT),
    ).stdout
    run_dir = run_dir_of(prepared)
    (command,) = [line.split() for line in prepared.splitlines() if "sbatch" in line]
    path = f"{Path(sys.executable).parent}:{slurm.env['PATH']}"
    options = ["--wait", "--mem=1000", f"--output={tmp_path / 'job.out'}"]
    slurm.run([command[0], *options, *command[1:]], timeout_s=120, PATH=path, PYTHONPATH=str(ROOT))
    events = (run_dir / "attempts" / "1" / "events.jsonl").read_text()
    assert '"outcome":"completed"' in events
    slurm.wait_empty()


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
            f"import sys; sys.path.insert(0, {str(site)!r}); from launcher.paths import *;"
            " print(conf_dir(), (sbatch_templates_dir() / 'plain.sbatch').is_file())",
        ],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert found[0].startswith(str(site))
    assert found[1] == "True"

"""The command line, as a person meets it: tables, data, one message per mistake, and nothing heavy imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "vllm", "transformers", "matplotlib", "rich", "numpy", "submitit")


def test_plan_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "layout=gpu", "layout.nodes=3", "+cluster=slurm", "layout.hostnames=[a,b,c]"]) == 0

    # What follows is about the CPUs of this site's nodes.
    assert capsys.readouterr().out.splitlines()[:6] == [
        "node  hostname  role       role rank  processes     GPUs  ports",
        "0     a         trainer    0          trainer 0-7   0-7   -",
        "1     b         trainer    1          trainer 8-15  0-7   -",
        "2     c         inference  0          engine 0-7    0-7   9000-9007",
        "",
        "3 nodes with 8 GPUs each: 2 trainer, 1 inference; 16 trainer ranks, 8 engines (tensor parallel 1)",
    ]


def test_plan_prints_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--json", "layout.nodes=3"]) == 0

    data = json.loads(capsys.readouterr().out)
    assert [node["role"] for node in data["nodes"]] == ["trainer", "trainer", "inference"]
    assert data["world_size"] == 2


def test_plan_does_not_need_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "experiment=qwen3_8b"]) == 0

    assert "engine 0-7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan", "trainer.stepz=1"], "`trainer.stepz` is not a setting. HINT: did you mean `trainer.steps`?"),
        (["plan", "nodes=4"], "did you mean `layout.nodes`?"),
        (["plan", "+foo=1"], "`foo` is not a setting"),
        (["plan", "layout=gpuu"], "did you mean `layout=gpu`? There are: cpu, gpu"),
        (["plan", "trainer.steps=many"], "`trainer.steps`: Value 'many'"),
        (["plan", "cluster=slurm"], "`+cluster=...`"),
        (["plan", "cluster.partition=gpu"], "HINT: add `+cluster=slurm`"),
        (["plan", "+cluster=slurm", "cluster.tim=1"], "did you mean `cluster.time`?"),
        (["plan", "trainer.steps=1="], "cannot be read as an override: extraneous input"),
        (["plna"], "`plna` is neither a command nor an override"),
        (["trainer.stepz=1"], "did you mean `trainer.steps`?"),
        (["--config-dir", "/nowhere"], "/nowhere"),
        (["plan", "--config-dir", "/nowhere", "+cluster=mine"], "`--config-dir` (/nowhere)"),
        (["plan", "layout.nodes=0", "inference.base_port=1"], "2 problems in the configuration"),
        (["layout.inference_nodes=2"], "leaves no node"),
        (["experiment=qwen3_8b"], "hf download Qwen/Qwen3-8B"),
        (["-m", "trainer.stepz=1,2"], "did you mean `trainer.steps`?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_message_and_leaves_nothing(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], empty_dir: Path
) -> None:
    assert main(arguments) == 2

    error = capsys.readouterr().err
    assert says in error
    assert error.startswith("launcher: ")
    assert "Traceback" not in error
    assert list(empty_dir.iterdir()) == []


def test_a_wrong_file_of_ones_own_is_named(capsys: pytest.CaptureFixture[str], empty_dir: Path) -> None:
    (empty_dir / "cluster").mkdir()
    (empty_dir / "cluster" / "ours.yaml").write_text("partition: gpu\n")
    (empty_dir / "model").mkdir()
    (empty_dir / "model" / "broken.yaml").write_text("path: [\n")

    assert main(["plan", "--config-dir", str(empty_dir), "+cluster=ours"]) == 2
    assert "In 'cluster/ours'" in (error := capsys.readouterr().err)
    assert "`defaults: [slurm, _self_]`" in error
    assert main(["plan", "--config-dir", str(empty_dir), "model=broken"]) == 2
    assert "broken.yaml" in capsys.readouterr().err


def test_a_sweep_is_checked_as_a_whole_and_leaves_nothing(capsys: pytest.CaptureFixture[str], empty_dir: Path) -> None:
    assert main(["-m", "layout.inference_nodes=1,2,3", "trainer.lr=1e-3,-1"]) == 2

    error = capsys.readouterr().err
    assert error.startswith("launcher: 3 problems in the configuration; nothing was started:")
    assert "`layout.inference_nodes` (2) leaves no node" in error
    assert "in 1 of 6 runs: layout.inference_nodes=2 trainer.lr=0.001" in error
    assert "`layout.inference_nodes` (3) is more than" in error
    assert "in 3 of 6 runs: layout.inference_nodes=1 trainer.lr=-1; " in error
    assert list(empty_dir.iterdir()) == []


def test_help_names_commands_and_presets(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["-h"], ["trainer.steps=1", "--help"]):
        assert main(arguments) == 0
        shown = capsys.readouterr().out
        assert "\n  plan " in shown
        assert "qwen3_8b" in shown
        assert "+cluster=slurm" in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0

    assert capsys.readouterr().out.startswith("launcher 0.")


def test_hydra_shows_the_configuration(capsys: pytest.CaptureFixture[str], empty_dir: Path) -> None:
    assert main(["--cfg", "job", "trainer.steps=7"]) == 0

    assert "steps: 7" in capsys.readouterr().out
    assert list(empty_dir.iterdir()) == []


def test_plan_as_a_program_imports_nothing_heavy(empty_dir: Path) -> None:
    script = (
        "import sys; from launcher.cli import main; code = main(['plan', '+cluster=slurm'])\n"
        f"heavy = sorted(set({HEAVY!r}) & set(sys.modules)); sys.exit(f'imported {{heavy}}' if heavy else code)"
    )
    done = _python("-c", script, cwd=empty_dir)

    assert (done.returncode, done.stderr) == (0, "")
    assert "engine 0" in done.stdout
    assert list(empty_dir.iterdir()) == []


def test_submitting_and_following_import_neither_torch_nor_vllm(empty_dir: Path) -> None:
    script = (
        "import sys, launcher.submit.run, launcher.submit.slurm, launcher.submit.cluster\n"
        "import launcher.observe.terminal.follow\n"
        "import launcher.observe.terminal.summary, launcher.observe.plots.pictures\n"
        "heavy = {'torch', 'vllm', 'transformers'} & set(sys.modules); sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    assert _python("-c", script, cwd=empty_dir).returncode == 0


def test_module_and_exit_code(empty_dir: Path) -> None:
    done = _python("-m", "launcher", "layout.nodes=0", cwd=empty_dir)

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "launcher: 1 problem in the configuration; nothing was started:",
        "  - `layout.nodes` (0) is not a number from 1 up. HINT: set `layout.nodes=1` or more.",
    ]
    assert list(empty_dir.iterdir()) == []


def test_a_reader_that_stops_early_is_no_error(empty_dir: Path) -> None:
    plan = subprocess.Popen(
        [sys.executable, "-m", "launcher", "plan", "--json", "layout=gpu", "layout.nodes=512"],
        cwd=empty_dir,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert plan.stdout is not None
    assert plan.stderr is not None
    plan.stdout.read(10)
    plan.stdout.close()
    error = plan.stderr.read()
    plan.stderr.close()

    assert plan.wait(timeout=60) == 0
    assert error == b""


@pytest.fixture
def empty_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=_environment(), capture_output=True, text=True, timeout=120, check=False
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}

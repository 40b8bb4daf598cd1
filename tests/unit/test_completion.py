"""Completion, as candidates and in a real shell."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.commands.completion import SCRIPTS, candidates
from tests.unit.recorded import run_dir

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("line", "has", "has_not"),
    [
        ("launcher ", {"runs ", "status ", "layout=", "trainer.lr="}, {"last "}),
        ("launcher st", {"status "}, {"runs "}),
        ("launcher plan layout=", {"layout=gpu ", "layout=cpu "}, {"model=tiny "}),
        ("launcher +clu", {"+cluster="}, {"cluster="}),
        ("launcher plan cluster.part", {"cluster.partition="}, set()),
        ("launcher logs ", {"last ", "grpo-1 "}, {"layout="}),
        ("launcher cancel gr", {"grpo-1 "}, {"last "}),
        ("launcher status --output-dir other ", {"ppo-1 "}, {"grpo-1 "}),
        ("launcher", set(), {"runs "}),
    ],
)
def test_candidates(
    line: str, has: set[str], has_not: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir(tmp_path / "runs", "grpo-1")
    run_dir(tmp_path / "other", "ppo-1")
    found = set(candidates(line))
    assert has <= found and not has_not & found


@pytest.mark.parametrize("shell", SCRIPTS)
def test_scripts_are_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert f"launcher completion {shell} --line" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "reply"), [("launcher plan layout=gpu_sp", "gpu_split "), ("launcher expl", "explain ")]
)
def test_bash_completes(line: str, reply: str, tmp_path: Path) -> None:
    program = tmp_path / "launcher"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m launcher "$@"\n')
    program.chmod(0o755)
    ask = 'COMP_POINT=${#COMP_LINE}; _launcher; printf "%s|" "${COMPREPLY[@]}"'
    script = f'{SCRIPTS["bash"]}\nCOMP_LINE="{line}"; {ask}'
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, "-c", script], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{reply}|"

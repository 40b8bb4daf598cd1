"""Completion, as candidates and in a real shell."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.cli.completion import SCRIPTS, candidates
from tests.unit.recorded import run_dir
from tests.unit.terminal import Terminal

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("line", "has", "has_not"),
    [
        ("launcher ", {"runs ", "status ", "layout=", "trainer."}, {"last ", "trainer.lr="}),
        ("launcher tr", {"trainer=", "trainer."}, {"trainer.lr="}),
        ("launcher -m trainer.l", {"trainer.lr="}, set()),
        ("launcher trainer.lr=", {"trainer.lr=0.001 "}, set()),
        ("launcher layout.nodes=7 layout.nodes=", {"layout.nodes=7 "}, set()),
        ("launcher no.such=7 layout.nodes=", {"layout.nodes=2 "}, set()),
        ("launcher snapshot=", {"snapshot=true ", "snapshot=false "}, set()),
        ("launcher bridge.transport=g", {"bridge.transport=gloo "}, {"bridge.transport=shm "}),
        ("launcher +cluster=", {"+cluster=slurm ", "+cluster=local "}, set()),
        ("launcher --", {"--multirun ", "--json "}, {"--role "}),
        ("launcher logs last --", {"--role ", "--json ", "--help "}, {"--multirun "}),
        ("launcher logs last --role t", {"trainer "}, {"inference "}),
        ("launcher sweep ", {"status ", "results ", "cancel "}, {"layout="}),
        ("launcher sweep status ", {"runs/sweeps/lr "}, {"last "}),
        ("launcher replay ", {"last ", "grpo-1 "}, {"layout="}),
        ("launcher replay last layout.no", {"layout.nodes="}, {"last "}),
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
    (tmp_path / "runs" / "sweeps" / "lr").mkdir(parents=True)
    found = set(candidates(line))
    assert has <= found and not has_not & found


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("launcher trainer.lr=", "0.001 \n"),
        ("launcher trainer.lr=1e-3 layout=gpu_sp", "gpu_split \n"),
        ("launcher trainer.lr=1e-3 ", "bridge=\n"),
    ],
)
def test_bash_is_told_what_follows_an_equals_sign(line: str, reply: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash", "--line", line]) == 0
    assert capsys.readouterr().out.startswith(reply)


SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], ""),
    "zsh": (["zsh", "-f", "-i"], "autoload -U compinit; compinit -u -D"),
    "fish": (["fish", "--no-config", "-i"], "function fish_prompt; end"),
}
"""How each is started without anybody's settings, and what it needs first."""


SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], ""),
    "zsh": (["zsh", "-f", "-i"], "autoload -U compinit; compinit -u -D"),
    "fish": (["fish", "--no-config", "-i"], ""),
}
"""How each is started without anybody's settings, and what it needs first."""

PROGRAM = """\
#!/bin/sh
[ "$1" != completion ] && { echo "given: $*."; exit; }
PYTHONPATH=%s exec %s -m launcher "$@"
"""


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_shell_completes(shell: str, tmp_path: Path) -> None:
    program = tmp_path / "launcher"
    program.write_text(PROGRAM % (ROOT, sys.executable))
    program.chmod(0o755)
    script = tmp_path / "completion"
    script.write_text(SCRIPTS[shell] + "\n")
    command, first = SHELLS[shell]
    with Terminal(command, tmp_path) as terminal:
        terminal.type(f"{first}\nsource {script}\necho 'set' up\n")
        terminal.wait_for("set up")
        terminal.type("launcher insp\tlayout=gpu_sp\ttrainer.lr=\t--js\t\n")
        terminal.wait_for("given: inspect layout=gpu_split trainer.lr=0.001 --json.")

"""What all commands have in common."""

from __future__ import annotations

import subprocess
import sys

import pytest

from launcher.cli import main
from launcher.cli.commands import COMMANDS, GROUPS
from tests.unit.cli.test_cli import ROOT

HEAVY = ("torch", "vllm", "hydra", "submitit", "rich", "matplotlib", "omegaconf", "starlette")
HYDRA_ONLY = frozenset({"submit"})
"""Takes what Hydra takes; its help is the launcher's own."""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_listed_and_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert COMMANDS[name].group in GROUPS
    assert main(["--help"]) == 0
    assert f"\n  {name} " in capsys.readouterr().out
    if name in HYDRA_ONLY:
        return
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: launcher {name}" in shown
    assert f"launcher {name} " in shown.partition("examples:")[2]
    assert "\n  2 " in shown.partition("exit codes:")[2]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in HYDRA_ONLY])
def test_a_wrong_option_is_one_message(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--no-such-option"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"launcher: launcher {name}")
    assert f"`launcher {name} --help`" in error or f"`launcher {name} " in error
    assert len(error.splitlines()) == 1


def test_the_table_of_commands_imports_nothing_heavy() -> None:
    script = (
        "import sys; from launcher.cli import main; code = main(['--help'])\n"
        f"heavy = sorted(set({HEAVY!r}) & set(sys.modules)); sys.exit(f'imported {{heavy}}' if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")

"""Text on the command line: any locale, any characters, and commands that can be pasted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.common.text import command_line

C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def launcher(*words: str | bytes, env: Mapping[str, str] = C_LOCALE) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "launcher", *words], env={**os.environ, **env}, capture_output=True, check=False
    )


def test_a_locale_that_is_not_utf_8_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(
        "# @package _global_\ntrainer:\n  env: {SIZE: größe}\n", encoding="utf-8"
    )

    done = launcher(
        *("render", "+cluster=slurm", "snapshot=false", '+cluster.env.NOTE="é"', f"output_dir={tmp_path}/é"),
        *("experiment=mine", "--config-dir", str(tmp_path), "-o", str(tmp_path / "job é.sh")),
    )

    assert done.returncode == 0, done.stderr
    assert "NOTE: é" in (tmp_path / "job é.sh").read_text(encoding="utf-8")
    assert "SIZE: größe" in (tmp_path / "job é.sh").read_text(encoding="utf-8")
    assert f"sbatch '{tmp_path}/job é.sh'" in done.stdout.decode()


def test_output_that_cannot_be_encoded_is_escaped() -> None:
    words = ("inspect", "trainer-0", '+cluster.env.NOTE="é"')
    done = launcher(*words, env={"PYTHONIOENCODING": "ascii"})

    assert done.returncode == 0, done.stderr
    assert rb"NOTE='\xe9'" in done.stdout


@pytest.mark.parametrize("env", [{}, C_LOCALE])
def test_an_argument_that_is_no_text_is_one_message(env: dict[str, str]) -> None:
    done = launcher("plan", b"name=\xff", env=env)

    assert done.returncode == 2
    assert done.stderr.startswith(rb"launcher: Argument 2 ('name=\udcff') is not UTF-8 text.")


def test_a_preset_that_is_no_text_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_bytes(b"# @package _global_\nname: \xff\n")

    assert main(["plan", "experiment=mine", "--config-dir", str(tmp_path)]) == 2
    assert "mine.yaml is not UTF-8 text" in capsys.readouterr().err


def test_a_command_can_be_pasted() -> None:
    assert command_line("logs", "-f", Path("my runs/a'b")) == """launcher logs -f 'my runs/a'"'"'b'"""


@pytest.mark.parametrize(
    "value",
    ["rack[0-1]n[01-02]", "[rack[0-1]n[01-02]]", "[rack0n[01-02],rack1n01,rack1n02]", "rack0n[01-02],rack1n[01,02]"],
)
def test_hostnames_may_be_a_node_list_as_slurm_writes_it(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "layout.nodes=4", f"layout.hostnames={value}"]) == 0

    shown = capsys.readouterr().out
    assert all(name in shown for name in ("rack0n01", "rack0n02", "rack1n01", "rack1n02"))


def test_a_node_list_in_a_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nlayout:\n  nodes: 3\n  hostnames: gpu[08-10]\n"
    (tmp_path / "experiment/mine.yaml").write_text(text, encoding="utf-8")

    assert main(["plan", "experiment=mine", "--config-dir", str(tmp_path)]) == 0
    assert "gpu08" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("rack[0-", "cannot be read"),
        ("a[2-1]", "cannot be read"),
        ("a[1-3]", "(3 names) does not match `layout.nodes` (2)"),
    ],
)
def test_a_wrong_node_list_is_refused(value: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", f"layout.hostnames={value}"]) == 2
    assert message in capsys.readouterr().err

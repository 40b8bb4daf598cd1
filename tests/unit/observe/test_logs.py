"""Logs as they are chosen, merged and followed, on files that grow, rotate and come late."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.layout import layout_to_json, plan
from launcher.observe.logs import Choice, LogReader, logs_of
from tests.unit import view_events
from tests.unit.recorded import run_dir, started
from tests.unit.slurm_tools import NO_SUCH, OFF, row, tool, tools

__all__ = ["tools"]
ROOT = Path(__file__).parents[3]


def write(run: Path, name: str, text: str, attempt: int = 1) -> Path:
    path = run / "attempts" / str(attempt) / "logs" / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)
    return path


@pytest.fixture
def run(tools: Path) -> Path:
    """A run of two nodes with eight slots each, which SLURM has forgotten."""
    from launcher.config import compose

    layout = layout_to_json(plan(compose(["layout=gpu", "layout.nodes=3"])))
    path = run_dir(tools / "runs", "a", job={"job_id": "7"}, layout=layout)
    for name in ("trainer-0000", "trainer-0009", "inference-0", "inference-0.1", "agent-0001", "store"):
        write(path, name, "".join(f"{name} line {n}\n" for n in range(50)))
    tool(tools, "squeue", NO_SUCH)
    tool(tools, "sacct", OFF)
    return path


def show(run: Path, *options: str) -> int:
    return main(["logs", "a", "--output-dir", str(run.parent), *options])


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (Choice(), ["trainer-0000", "trainer-0009", "inference-0", "inference-0.1", "agent-0001", "store"]),
        (Choice(role="trainer"), ["trainer-0000", "trainer-0009"]),
        (Choice(role="trainer", rank=9), ["trainer-0009"]),
        (Choice(role="inference", rank=0), ["inference-0", "inference-0.1"]),
        (Choice(rank=0), ["trainer-0000", "inference-0", "inference-0.1"]),
        (Choice(node=1), ["trainer-0009", "agent-0001"]),
        (Choice(node=7), []),
        (Choice(role="helper"), ["store"]),
    ],
)
def test_choices(run: Path, choice: Choice, names: list[str]) -> None:
    assert [log.name for log in logs_of(run, 1, choice)] == names


def test_one_log_is_shown_as_it_is_and_several_with_their_names(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(run, "--role", "trainer", "--rank", "9", "--tail", "2") == 0
    assert capsys.readouterr().out == "trainer-0009 line 48\ntrainer-0009 line 49\n"
    assert show(run, "--role", "trainer", "--tail", "1") == 0
    assert capsys.readouterr().out.splitlines() == [
        "trainer-0000 | trainer-0000 line 49",
        "trainer-0009 | trainer-0009 line 49",
    ]
    assert show(run, "--role", "trainer", "--rank", "0", "--tail", "all", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == {"log": "trainer-0000", "attempt": 1, "line": "trainer-0000 line 0"}
    assert len(lines) == 50


def test_of_very_many_one_of_each_role_is_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(20):
        write(run, f"trainer-{n:04d}", "x\n")
    assert show(run, "--tail", "1") == 0
    shown = capsys.readouterr()
    assert [line.split(" |")[0] for line in shown.out.splitlines()] == [
        "trainer-0000",
        "inference-0",
        "agent-0001",
        "store",
    ]
    assert "4 of 24 logs; --role, --rank and --node choose" in shown.err


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--role", "trainer", "--rank", "77"], 1, "no such log. HINT: there are logs of the roles agent, helper, inf"),
        (["--attempt", "4"], 1, "attempt 4 of a has no logs"),
        (["--tail", "many"], 2, "`--tail` (many)"),
        (["--role", "bridge"], 2, "invalid choice: 'bridge'"),
    ],
)
def test_what_is_not_there(
    run: Path, options: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(run, *options) == code
    assert says in capsys.readouterr().err


def test_the_job_log_belongs_to_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "submitit").mkdir()
    (run / "submitit" / "7_0_log.out").write_text("srun: error\n")
    assert show(run, "--role", "job") == 0
    assert capsys.readouterr().out == "srun: error\n"


def test_a_reader_begins_at_the_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("".join(f"{n:06d} {'x' * 200}\n" for n in range(2000)) + "unfinished")
    reader = LogReader(path, 1001)
    lines = list(reader.read())
    assert (len(lines), lines[0][:6], lines[-1][:6]) == (1000, "001000", "001999")
    assert list(reader.close()) == ["unfinished"]
    for lines_wanted, count in ((0, 0), (None, 2000)):
        reader = LogReader(path, lines_wanted)
        assert len(list(reader.read())) == count
        list(reader.close())


def test_a_reader_survives_what_happens_to_logs(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    reader = LogReader(path, 10)
    assert list(reader.read()) == []  # late
    path.write_bytes(b"one\ntw")
    assert list(reader.read()) == ["one"]
    with path.open("ab") as file:
        file.write(b"o\r\n\xff\n")
    assert list(reader.read()) == ["two", "�"]
    with path.open("ab") as file:
        file.write(b"before rotation\n")
    path.rename(tmp_path / "x.log.1")
    assert list(reader.read()) == ["before rotation"]
    path.write_bytes(b"after\n")
    assert list(reader.read()) == ["after"]
    path.write_bytes(b"cut\n")
    path.write_bytes(b"c\n")
    assert list(reader.read()) == ["c"]
    assert list(reader.close()) == []


def test_following_through_two_attempts_to_the_end(tools: Path) -> None:
    run = run_dir(tools / "runs", "a", job={"job_id": "7"})
    tool(tools, "squeue", row("7", "PENDING", reason="Resources"))
    with subprocess.Popen(
        [sys.executable, "-m", "launcher", "logs", "a", "-f", "--output-dir", str(run.parent), "--role", "trainer"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stderr.readline() == "launcher: waiting for logs; a is queued\n"
        started(run, view_events.startup())
        write(run, "trainer-0000", "hello\n")
        assert process.stdout.readline() == "hello\n"
        write(run, "trainer-0001", "late\n")
        assert process.stdout.readline() == "trainer-0001 | late\n"
        started(run, view_events.startup(), attempt=2)
        write(run, "trainer-0000", "again\n", attempt=2)
        assert process.stdout.readline() == "trainer-0000 | again\n"
        write(run, "trainer-0000", "without end", attempt=2)
        tool(tools, "squeue", row("7", "COMPLETED"))
        tool(tools, "sacct", OFF)
        assert process.stdout.read() == "trainer-0000 | without end\n"
        assert process.stderr.read().splitlines() == ["launcher: attempt 2", "launcher: a: completed"]
    assert process.returncode == 0

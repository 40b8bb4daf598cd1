"""Runs found, listed and told apart, from recorded run directories."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.common.procfs import start_of
from launcher.observe.find import RunNotFound, find_run
from launcher.observe.run_status import JOB_STATE, RunStatus, statuses
from launcher.observe.run_summary import summarize
from tests.unit import view_events
from tests.unit.recorded import add_job, run_dir, started, trained
from tests.unit.slurm_tools import AWAY, NO_SUCH, OFF, calls, row, tool, tools

__all__ = ["tools"]


def status(path: Path) -> RunStatus:
    (found,), _ = statuses([summarize(path)])
    return found


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Four runs; ``grpo-b`` is the newest."""
    output = tmp_path / "runs"
    run_dir(output, "grpo-a", job={"job_id": "100"}, ago=300)
    run_dir(output, "grpo-ab", job={"job_id": "101_3"}, ago=200)
    run_dir(output, "grpo-b", job={"job_id": "102"}, ago=100)
    run_dir(output / "sweep-1", "ppo-0", job={"job_id": "103"}, ago=400)
    (output / "notes").mkdir()
    return output


@pytest.mark.parametrize(
    ("name", "found"),
    [("grpo-a", "grpo-a"), ("grpo-ab", "grpo-ab"), ("pp", "ppo-0"), ("last", "grpo-b"), ("101_3", "grpo-ab")],
)
def test_a_run_is_found(runs: Path, name: str, found: str) -> None:
    assert find_run(name, runs).name == found


def test_a_run_is_found_by_path(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    assert find_run("sweep-1/ppo-0", Path("nowhere")) == runs / "sweep-1" / "ppo-0"
    assert find_run(str(runs / "grpo-a"), Path("nowhere")) == runs / "grpo-a"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("grpo", "`grpo` fits 3 runs in .*: grpo-b, grpo-ab, grpo-a"),
        ("zzz", "the newest are: grpo-b, grpo-ab, grpo-a, ppo-0. HINT: `launcher runs --all`"),
        ("999", "has the job id `999`"),
        ("some/path", "some/path is no run directory"),
    ],
)
def test_a_run_that_is_not_meant_clearly(runs: Path, name: str, says: str) -> None:
    with pytest.raises(RunNotFound, match=says) as caught:
        find_run(name, runs)
    assert caught.value.exit_code == 2


def test_no_runs_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunNotFound, match="There is no run in"):
        find_run("last", tmp_path)
    assert main(["runs", "--output-dir", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out.startswith("no runs in ")


def test_the_newest_job_counts(tmp_path: Path) -> None:
    run = run_dir(tmp_path, "a", job={"job_id": "1"}, ago=300)
    started(run, [{**e, "job_id": "7"} if e["event"] == "attempt" else e for e in view_events.startup()], ago=200)
    assert summarize(run).job_id == "7"  # the script was submitted by hand once more
    add_job(run, "slurm", {"job_id": "9"}, ago=100)
    assert summarize(run).job_id == "9"
    assert find_run("9", tmp_path) == run


def test_a_digest_of_a_long_run(tmp_path: Path) -> None:
    run = started(run_dir(tmp_path, "a", job={"job_id": "7"}), trained(900, is_finished=False, planned=1000))
    noise = [{"time": time.time(), "event": "process", "name": f"inference-{n}", "state": "ended"} for n in range(2000)]
    view_events.write(run, noise)
    with (run / "attempts/1/events.jsonl").open("a") as file:
        file.write('{"time": 1, "event": "st')  # its writer is about to go on
    found = summarize(run)
    assert (found.step, found.steps, found.nodes, found.attempt) == (900, 1000, 2, 1)
    assert found.phase == "training" and found.outcome is None
    assert found.reward is not None and 0.5 < found.reward < 1.0


def test_an_attempt_that_has_no_step_yet_stands_where_the_last_one_stood(tmp_path: Path) -> None:
    run = started(run_dir(tmp_path, "a", job={"job_id": "7"}), trained(5, is_finished=False), ago=500)
    started(run, view_events.startup(), attempt=2)
    found = summarize(run)
    assert (found.attempt, found.step, found.phase) == (2, 5, "starting")


@pytest.mark.parametrize(
    ("squeue", "events", "word"),
    [
        (row("7", "PENDING"), None, "queued"),
        (row("7", "PENDING", reason="JobHeldAdmin"), None, "held"),
        (row("7", "SPECIAL_EXIT"), None, "held"),
        (row("7", "CONFIGURING"), None, "booting"),
        (row("7", "RUNNING"), None, "starting"),
        (row("7", "RUNNING"), view_events.startup(), "starting"),
        (row("7", "RUNNING"), trained(3, is_finished=False), "running"),
        (row("7", "STOPPED"), trained(3, is_finished=False), "suspended"),
        (row("7", "RUNNING"), trained(3, is_finished=True), "ending"),
        (row("7", "COMPLETING"), trained(3, is_finished=False), "ending"),
        (row("7", "REQUEUED"), trained(3, is_finished=False), "requeued"),
        (row("7", "COMPLETED"), trained(3, is_finished=True), "completed"),
        (row("7", "FAILED", 256), [*view_events.startup(), *view_events.engine_killed(60)], "failed"),
        (row("7", "FAILED", 256), trained(3, is_finished=True), "failed"),
        (row("7", "TIMEOUT"), trained(3, is_finished=False), "time limit"),
        (row("7", "BOOT_FAIL"), None, "boot fail"),
        (row("7", "OUT_OF_MEMORY"), None, "out of memory"),
        (row("7", "A_STATE_OF_2030"), trained(3, is_finished=False), "running"),
        (NO_SUCH, trained(3, is_finished=True), "completed"),
        (NO_SUCH, trained(3, is_finished=False), "lost"),
    ],
)
def test_one_word_for_each_state(tools: Path, squeue: str, events: view_events.Events | None, word: str) -> None:
    tool(tools, "squeue", squeue)
    tool(tools, "sacct", OFF)
    run = run_dir(tools / "runs", "a", job={"job_id": "7"})
    if events is not None:
        started(run, events)
    found = status(run)
    assert (found.state, found.is_certain) == (word, True)


def test_the_last_known_state_while_the_controller_is_away(
    tools: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tools)
    run_dir(tools / "runs", "new", job={"job_id": "8"}, ago=10)
    started(run_dir(tools / "runs", "old", job={"job_id": "7"}, ago=90), trained(3, is_finished=False))
    tool(tools, "squeue", row("7", "SUSPENDED"))
    tool(tools, "sacct", OFF)
    assert main(["runs"]) == 0
    capsys.readouterr()
    tool(tools, "squeue", AWAY)
    assert main(["runs"]) == 0
    shown, error = capsys.readouterr()
    assert "suspended?" in shown and "queued?" in shown
    assert "Unable to contact slurm controller" in error and "last known" in error


def test_what_has_ended_is_not_asked_again(tools: Path) -> None:
    ended = started(run_dir(tools / "runs", "a", job={"job_id": "7"}), trained(3, is_finished=True))
    tool(tools, "squeue", row("7", "COMPLETED"))
    assert status(ended).state == status(ended).state == "completed"
    assert len(calls(tools)) == 1
    # Unless it was requeued by hand.
    started(ended, view_events.startup(), attempt=2)
    tool(tools, "squeue", row("7", "RUNNING"))
    assert status(ended).state == "starting"


def test_what_slurm_has_forgotten_is_not_asked_again_either(tools: Path) -> None:
    run = started(run_dir(tools / "runs", "a", job={"job_id": "7"}), trained(3, is_finished=True))
    tool(tools, "squeue", NO_SUCH)
    tool(tools, "sacct", OFF)
    assert status(run).state == status(run).state == "completed"
    assert len(calls(tools)) == 2
    assert json.loads((run / JOB_STATE).read_text())["state"] is None


def test_a_local_run_lives_as_long_as_its_shims(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as shim:
        job = {"host": socket.gethostname(), "shims": [{"pid": shim.pid, "start": start_of(shim.pid)}]}
        run = run_dir(tmp_path, "a", cluster="local", job=job)
        started(run, trained(3, is_finished=False, cluster="local"))
        assert (status(run).state, status(run).is_over) == ("running", False)
        # The same pid, but of another process.
        other = run_dir(tmp_path, "b", cluster="local", job={**job, "shims": [{"pid": shim.pid, "start": "x:1"}]})
        assert (status(other).state, status(other).is_over) == ("lost", True)
        elsewhere = run_dir(tmp_path, "c", cluster="local", job={**job, "host": "elsewhere"})
        assert (status(elsewhere).state, status(elsewhere).is_certain) == ("starting", False)
        assert shim.stdin is not None
        shim.stdin.write(b"\n")
    assert (status(run).state, status(run).is_over) == ("lost", True)


def test_a_run_that_was_only_prepared(tmp_path: Path) -> None:
    assert status(run_dir(tmp_path, "a")).state == "prepared"


def test_the_table(tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tools / "runs"
    started(run_dir(runs, "done", job={"job_id": "7"}, ago=7200), trained(12, is_finished=True), ago=7200)
    run_dir(runs, "waiting", job={"job_id": "8_1"}, ago=86400 * 5)
    tool(tools, "squeue", row("7", "COMPLETED") + "\n" + row("8_1", "PENDING", reason="Resources"))
    assert main(["runs", "--output-dir", str(runs)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "run      state         age  nodes  step   reward  job",
        "waiting  queued     5 days      2  -           -  8_1",
        "done     completed     2 h      2  12/12   0.854  7",
    ]
    assert main(["runs", "--json", "--output-dir", str(runs)]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["name"], first["job_state"], second["outcome"]) == ("waiting", "PENDING", "completed")


@pytest.mark.slow
def test_a_thousand_runs_are_listed_within_a_second_of_work(tools: Path) -> None:
    runs = tools / "runs"
    events = [*view_events.startup(replicas=8), *view_events.steps(400)]
    for n in range(1000):
        started(run_dir(runs, f"r{n:04d}", job={"job_id": str(n)}, ago=n), events)
    tool(tools, "squeue", "\n".join(row(str(n), "RUNNING") for n in range(1000)))
    done = subprocess.run(
        [sys.executable, "-c", _TIMED, "runs", "--output-dir", str(runs)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(done.stdout.splitlines()) == 1001
    assert len(calls(tools)) == 1
    # Work, not time; but work on a core whose twin is busy takes up to twice as much.
    assert float(done.stderr) < 3.0


_TIMED = (
    "import sys, time; from launcher.cli import main; main(sys.argv[1:]); print(time.process_time(), file=sys.stderr)"
)

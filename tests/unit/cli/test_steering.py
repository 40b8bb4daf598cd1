"""Cancelling, attaching and explaining, on processes of this machine and on recorded runs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.common.procfs import Identity, start_of
from launcher.config import compose
from launcher.layout import layout_to_json, plan
from launcher.observe.layouts import NoSuchTarget, find_rank, find_target
from tests.unit import view_events
from tests.unit.recorded import run_dir, started
from tests.unit.slurm_tools import AWAY, NO_SUCH, OFF, calls, row, tool, tools

pytestmark = pytest.mark.slow

__all__ = ["tools"]
ROOT = Path(__file__).parents[3]
GUARD = (
    "import signal, sys\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
    "print('ready', flush=True)\n"
    "signal.pause()"
)


@pytest.fixture
def shims() -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes that end at SIGTERM, as shims do."""
    started = [subprocess.Popen([sys.executable, "-c", GUARD], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in started:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield started
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def local_run(output_dir: Path, processes: list[subprocess.Popen[str]], **job: object) -> Path:
    record = {
        "host": socket.gethostname(),
        "shims": [{"pid": g.pid, "start": start_of(g.pid)} for g in processes],
        **job,
    }
    layout = layout_to_json(plan(compose(["+trainer.env.MARK=here"])))
    return started(run_dir(output_dir, "mine", cluster="local", job=record, layout=layout), view_events.startup())


def test_a_local_run_is_cancelled_through_its_shims(
    tmp_path: Path, shims: list[subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    local_run(tmp_path, shims)
    where = ["--output-dir", str(tmp_path)]
    assert main(["cancel", "mine", *where]) == 0
    assert [shim.wait(10) for shim in shims] == [0, 0]
    pids = ", ".join(str(shim.pid) for shim in shims)
    assert f"mine was starting; ended 2 nodes on this machine (shims {pids})" in capsys.readouterr().out
    assert main(["cancel", "mine", "mine", *where]) == 0
    assert capsys.readouterr().out == "mine had ended: lost\n"


def test_a_pid_that_was_used_again_is_never_hit(tmp_path: Path, shims: list[subprocess.Popen[str]]) -> None:
    local_run(tmp_path, [], shims=[{"pid": shims[0].pid, "start": "another boot:1"}])
    assert main(["cancel", "mine", "--output-dir", str(tmp_path)]) == 0
    assert not Identity(pid=shims[0].pid, start="another boot:1").send(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        shims[0].wait(0.5)


def test_a_shim_that_does_not_end_is_named(
    tmp_path: Path, shims: list[subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    local_run(tmp_path, shims[:1])
    shims[0].send_signal(signal.SIGSTOP)
    assert main(["cancel", "mine", "--timeout-s", "0.3", "--output-dir", str(tmp_path)]) == 1
    assert f"have not ended after 0.3 s: processes {shims[0].pid}" in capsys.readouterr().err


def test_a_run_of_another_machine_is_left_alone(
    tmp_path: Path, shims: list[subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    local_run(tmp_path, shims, host="elsewhere")
    assert main(["cancel", "mine", "--output-dir", str(tmp_path)]) == 1
    assert "mine runs on elsewhere. HINT: run this command there." in capsys.readouterr().err
    assert main(["attach", "mine", "--output-dir", str(tmp_path)]) == 1
    assert shims[0].poll() is None


def test_jobs_are_cancelled_with_one_scancel(tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, job_id in (("a", "7"), ("b", "8_2"), ("c", "9")):
        run_dir(tools / "runs", name, job={"job_id": job_id})
    answers = "\n".join([row("7", "RUNNING"), row("8_2", "PENDING"), row("9", "COMPLETED")])
    ended = "\n".join([row("7", "CANCELLED", 15), row("9", "COMPLETED")])
    tool(tools, "squeue", f"if [ -e {tools}/cancelled ]; then {ended}\nelse {answers}\nfi")
    tool(tools, "scancel", f"touch {tools}/cancelled")
    tool(tools, "sacct", OFF)
    assert main(["cancel", "a", "b", "c", "--json", "--output-dir", str(tools / "runs")]) == 0
    assert [call for call in calls(tools) if call.startswith("scancel")] == ["scancel 7 8_2"]
    results = json.loads(capsys.readouterr().out)
    assert [(result["name"], result["was"], result["ended"]) for result in results] == [
        ("a", "starting", ["job 7: CANCELLED"]),
        ("b", "queued", ["job 8_2: no longer known to SLURM"]),
        ("c", "completed", []),
    ]


@pytest.mark.parametrize(
    ("scancel", "squeue", "code", "says"),
    [
        ("echo 'Access/permission denied' >&2; exit 1", row("7", "RUNNING"), 1, "Access/permission denied"),
        ("echo 'scancel: error: Invalid job id 7' >&2; exit 1", NO_SUCH, 0, ""),
        ("true", row("7", "COMPLETING"), 1, "Not ended after 0.2 s: job 7 is COMPLETING"),
        ("true", AWAY, 1, "Not ended after 0.2 s: `squeue` does not answer"),
    ],
)
def test_what_may_go_wrong_with_scancel(
    tools: Path, scancel: str, squeue: str, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir(tools / "runs", "a", job={"job_id": "7"})
    tool(tools, "squeue", f"if [ -e {tools}/cancelled ]; then {squeue}\nelse {row('7', 'RUNNING')}\nfi")
    tool(tools, "scancel", f"touch {tools}/cancelled; {scancel}")
    tool(tools, "sacct", OFF)
    assert main(["cancel", "a", "--timeout-s", "0.2", "--output-dir", str(tools / "runs")]) == code
    assert says in capsys.readouterr().err


def attach(output_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher", "attach", "mine", "--output-dir", str(output_dir), *words]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "RANK": "99"}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_a_command_on_a_local_node_has_that_nodes_environment(
    tmp_path: Path, shims: list[subprocess.Popen[str]]
) -> None:
    run = local_run(tmp_path, shims)
    done = attach(tmp_path, "--", "sh", "-c", "echo $RANK $MARK $LAUNCHER_NODE_RANK $LAUNCHER_RUN_DIR; exit 3")
    assert (done.returncode, done.stdout) == (3, f"0 here 0 {run}\n")
    done = attach(tmp_path, "--role", "inference", "--", "sh", "-c", "echo $LAUNCHER_ROLE $LAUNCHER_NODE_RANK:$RANK")
    assert done.stdout == "inference 1:\n"
    assert "LAUNCHER_TOKEN" not in attach(tmp_path, "--", "env").stdout
    for words, says in (
        (["--node", "5"], "There is no node 5"),
        (["--node", "0", "--rank", "1"], "exclude each other"),
        (["--rank", "8"], "There is no trainer rank 8: there are 0 to 0"),
    ):
        done = attach(tmp_path, *words)
        assert done.returncode == 2 and says in done.stderr
    assert "`no-such-program` is not in PATH" in attach(tmp_path, "--", "no-such-program").stderr


LAYOUT = plan(compose(["layout=gpu", "layout.nodes=3", "inference.tensor_parallel_size=4"]), ["a1", "b", "trainer-1"])


@pytest.mark.parametrize(
    ("word", "node", "process"),
    [
        ("0", 0, None),
        ("b", 1, None),
        ("trainer-1", 2, None),
        ("trainer-0001", 0, "trainer-0001"),
        ("trainer-11", 1, "trainer-0011"),
        ("inference-1", 2, "inference-1"),
    ],
)
def test_a_target_is_found(word: str, node: int, process: str | None) -> None:
    found = find_target(LAYOUT, word)
    assert (found.node.node_rank, found.process.name if found.process is not None else None) == (node, process)


def test_a_target_that_is_not_there() -> None:
    with pytest.raises(NoSuchTarget, match="did you mean inference-1"):
        find_target(LAYOUT, "inference-10")
    with pytest.raises(NoSuchTarget, match="There is no node 3: there are 0 to 2"):
        find_target(LAYOUT, "3")
    with pytest.raises(NoSuchTarget, match="There is no inference rank 2: there are 0 to 1"):
        find_rank(LAYOUT, "inference", 2)


def test_a_node_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    gpu = ["layout=gpu", "layout.nodes=2", "inference.tensor_parallel_size=4"]
    assert main(["inspect", "1", *gpu]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("node 1 (node-0001): inference node 0\n")
    assert "  inference-1\n    GPUs     4, 5, 6, 7\n    log      logs/inference-1.log\n" in shown
    assert "    serves   http://node-0001:9001\n" in shown
    assert "    CUDA_VISIBLE_DEVICES=4,5,6,7\n" in shown
    assert shown.count("HF_HUB_OFFLINE=1") == 1
    assert main(["inspect", "trainer-5", "--json", *gpu]) == 0
    (process,) = json.loads(capsys.readouterr().out)["processes"]
    assert (process["name"], process["env"]["RANK"], process["gpus"]) == ("trainer-0005", "5", [5])
    # The command's name in an earlier version.
    assert main(["explain", "1", *gpu]) == 0
    output = capsys.readouterr()
    assert output.out == shown and "is now called `launcher inspect`" in output.err


def test_a_run_is_explained_as_it_was_laid_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_dir(tmp_path, "a", layout=layout_to_json(LAYOUT))
    assert main(["inspect", "b", "--run", "last", "--output-dir", str(tmp_path)]) == 0
    assert "trainer-0015" in capsys.readouterr().out
    (run / "attempts/1").mkdir(parents=True)
    moved = plan(compose(["layout=gpu", "layout.nodes=3"]), ["x", "y", "z"])
    (run / "attempts/1/layout.json").write_text(layout_to_json(moved))
    assert main(["inspect", "y", "--run", "last", "--output-dir", str(tmp_path)]) == 0
    assert main(["inspect", "y", "--run", "last", "layout.nodes=3", "--output-dir", str(tmp_path)]) == 2
    assert "takes no overrides (layout.nodes=3)" in capsys.readouterr().err

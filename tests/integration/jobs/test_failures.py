"""Whatever fails in a job: one message that names the cause, within 15 s, an exit code, and nothing left running.

Engines are started for real, but nearly all of these jobs end while theirs still load.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

from tests.integration.jobs.launched import Launcher
from tests.unit.processes import DETACHED, wait_for_file

pytestmark = [pytest.mark.engine]

DEADLINE_S = 15
FAILURE_CODE = 5


def command(program: str, *arguments: str) -> str:
    """``trainer.command`` for a program of a few lines."""
    words = ", ".join("'" + word.replace("'", "\\'") + "'" for word in ("python", "-c", program, *arguments))
    return f"trainer.command=[{words}]"


def left_in(folder: Path) -> list[Path]:
    """What a run has left among temporary files; compile caches are there to stay."""
    return [path for path in folder.glob("launcher-*") if not path.name.startswith("launcher-caches-")]


RAISES = """
print("step 1")
raise ValueError("the loss is not a number")
"""


def test_a_trainer_that_raises_is_named_with_its_exception_and_log(launcher: Launcher, model: Path) -> None:
    job = launcher(f"model.path={model}", command(RAISES))
    assert job.wait(60) == FAILURE_CODE
    assert job.cause.startswith("trainer 0 on node 0 (local-0) ended with exit code 1 after ")
    assert job.cause.endswith(": ValueError: the loss is not a number")
    log = job.run_dir / "attempts/1/logs/trainer-0000.log"
    shown = job.output.partition(f"  log         {log}\n")[2].partition("\n  retry")[0].splitlines()
    assert "    | Traceback (most recent call last):" in shown
    assert shown[-1] == "    | ValueError: the loss is not a number"
    failure, finished = job.event("failure"), job.event("finished")
    assert failure is not None and finished is not None
    assert finished["outcome"] == "failed"
    assert finished["time"] - failure["time"] < DEADLINE_S


def test_the_first_rank_to_fail_is_the_cause_and_the_others_are_ended(launcher: Launcher, model: Path) -> None:
    program = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.environ["RANK"] == "1":
    raise RuntimeError("rank 1 gives up")
time.sleep(600)
"""
    job = launcher(f"model.path={model}", "layout.gpus_per_node=2", "inference.replicas_per_node=1", command(program))
    job.wait_event("failure")
    begin = time.monotonic()
    assert job.wait(60) == FAILURE_CODE
    assert time.monotonic() - begin < DEADLINE_S
    assert job.cause.startswith("trainer 1 on node 0 (local-0) ended with exit code 1 after ")
    assert job.cause.endswith("RuntimeError: rank 1 gives up")
    assert len([event for event in job.events if event["event"] == "failure"]) == 1


def test_a_trainer_killed_by_a_signal(launcher: Launcher, model: Path) -> None:
    job = launcher(f"model.path={model}", command("import os; os.kill(os.getpid(), 11)"))
    assert job.wait(60) == FAILURE_CODE
    assert "trainer 0 on node 0 (local-0) ended with signal 11 (SIGSEGV) after " in job.cause


def test_a_trainer_program_that_does_not_exist(launcher: Launcher, model: Path) -> None:
    job = launcher(f"model.path={model}", "trainer.command=[/no/such/program]")
    assert job.wait(60) == FAILURE_CODE
    assert "ended with exit code 127" in job.cause
    assert job.cause.endswith("cannot run '/no/such/program': No such file or directory")


def test_an_engine_that_never_becomes_ready(launcher: Launcher, model: Path) -> None:
    job = launcher(f"model.path={model}", "inference.ready_timeout_s=2", command("import time; time.sleep(600)"))
    assert job.wait(60) == FAILURE_CODE
    assert "inference 0 on node 1 (local-1) was not ready within `inference.ready_timeout_s` (2 s)" in job.cause
    assert "inference-0.log" in job.output


def test_an_engine_that_refuses_its_arguments(launcher: Launcher, model: Path) -> None:
    job = launcher(
        f"model.path={model}", "inference.args=['--no-such-option']", command("import time; time.sleep(600)")
    )
    assert job.wait(90) == FAILURE_CODE
    assert job.cause.startswith("inference 0 on node 1 (local-1) ended with exit code 2 after ")
    assert "vLLM refuses its arguments: unrecognized arguments: --no-such-option. HINT" in job.cause


def test_an_engine_that_is_killed_and_may_not_be_restarted(launcher: Launcher, model: Path) -> None:
    job = launcher(f"model.path={model}", "restart.max_engine_restarts=0", command("import time; time.sleep(600)"))
    os.kill(job.wait_process("inference-0"), signal.SIGKILL)
    begin = time.monotonic()
    assert job.wait(60) == FAILURE_CODE
    assert time.monotonic() - begin < DEADLINE_S
    assert "inference 0 on node 1 (local-1) ended with signal 9 (SIGKILL) after " in job.cause


def test_a_port_that_is_taken_when_ports_are_strict(launcher: Launcher, model: Path) -> None:
    from launcher.common.ports import hold_free_port, port_of

    with hold_free_port("127.0.0.1") as held:
        port = port_of(held)
        job = launcher(
            f"model.path={model}",
            *(
                f"inference.base_port={port}",
                "inference.strict_ports=true",
                "preflight.skip=[ports]",
                command("import time; time.sleep(600)"),
            ),
        )
        assert job.wait(60) == FAILURE_CODE
    assert f"Port {port} on 127.0.0.1 is taken, and `inference.strict_ports` is true. HINT: set" in job.cause


@pytest.mark.parametrize("node_rank", [0, 1])
def test_an_agent_that_is_killed(launcher: Launcher, model: Path, node_rank: int) -> None:
    job = launcher(f"model.path={model}", command("import time; time.sleep(600)"))
    job.wait_process("trainer-0000")
    os.kill(job.agent(node_rank), signal.SIGKILL)
    begin = time.monotonic()
    assert job.wait(60) != 0
    assert time.monotonic() - begin < DEADLINE_S
    assert f"The agent on node {node_rank} (local-{node_rank}) ended with signal 9 (SIGKILL)." in job.cause


@pytest.mark.parametrize("node_rank", [0, 1])
def test_a_shim_that_is_killed(launcher: Launcher, model: Path, tmp_path: Path, node_rank: int) -> None:
    detached = tmp_path / "detached"
    # A long path would not be used, because sockets lie below it.
    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        program = command(DETACHED + "time.sleep(600)", str(detached))
        job = launcher(f"model.path={model}", program, TMPDIR=scratch)
        wait_for_file(detached)
        assert left_in(Path(scratch))
        os.kill(job.shim(node_rank), signal.SIGKILL)
        begin = time.monotonic()
        assert job.wait(60) != 0
        assert time.monotonic() - begin < DEADLINE_S
        job.mark.wait_gone(DEADLINE_S)
        assert not left_in(Path(scratch))
    assert f"The shim on node {node_rank} (local-{node_rank}) was killed" in job.cause


def test_a_node_that_falls_silent(launcher: Launcher, model: Path) -> None:
    job = launcher(f"model.path={model}", "lease_timeout_s=3", command("import time; time.sleep(600)"))
    job.wait_process("trainer-0000")
    os.kill(job.agent(1), signal.SIGSTOP)
    begin = time.monotonic()
    assert job.wait(60) != 0
    assert time.monotonic() - begin < DEADLINE_S
    assert "inference on node 1 (local-1): its agent has been silent for " in job.cause


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_the_run_and_a_second_one_is_harmless(
    launcher: Launcher, model: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    detached = tmp_path / "detached"
    job = launcher(f"model.path={model}", command(DETACHED + "time.sleep(600)", str(detached)))
    wait_for_file(detached)
    begin = time.monotonic()
    job.process.send_signal(signum)
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and job.process.poll() is None:
        job.process.send_signal(signum)
        time.sleep(0.1)
    assert job.wait(60) == 128 + signum
    assert time.monotonic() - begin < DEADLINE_S
    assert not job.mark.left()
    assert f"launcher: {signum.name}; ending the run ..." in job.output
    assert "Cancelled after " in job.output
    assert "Traceback" not in job.output


def test_a_launcher_that_is_killed_leaves_nothing(launcher: Launcher, model: Path, tmp_path: Path) -> None:
    detached = tmp_path / "detached"
    job = launcher(f"model.path={model}", command(DETACHED + "time.sleep(600)", str(detached)))
    wait_for_file(detached)
    job.process.kill()
    job.wait(5)
    assert job.mark.wait_gone(DEADLINE_S) < DEADLINE_S
    finished = job.event("finished")
    assert finished is not None
    assert finished["outcome"] == "cancelled"


def test_an_interrupt_right_at_the_start(launcher: Launcher, model: Path) -> None:
    job = launcher(f"model.path={model}")
    while "run directory" not in job.output:
        assert job.process.poll() is None
        time.sleep(0.01)
    job.process.send_signal(signal.SIGINT)
    assert job.wait(30) == 130
    assert not job.mark.left()
    assert "Traceback" not in job.output


def test_a_job_that_completes_leaves_nothing_of_what_its_trainer_detached(
    launcher: Launcher, model: Path, tmp_path: Path
) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    job = launcher(f"model.path={model}", command(DETACHED, str(tmp_path / "detached")), TMPDIR=str(scratch))
    assert job.wait(60) == 0
    assert not job.mark.left()
    assert not left_in(scratch)
    assert "Completed after " in job.output

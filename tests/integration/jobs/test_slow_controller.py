"""A controller of SLURM that answers only after 20 s: submission, status, cancel, requeue and the end of a run that is
followed.

The real slurmctld is stopped by a signal for that time, so that every client waits as at a busy site.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.jobs.followed import START_S, Run, saving_program
from tests.integration.jobs.launched import ROOT
from tests.integration.jobs.submitted import submit
from tests.slurm_cluster.cluster import SlurmCluster
from tests.slurm_cluster.spec import missing_requirements

pytestmark = [pytest.mark.slurm, pytest.mark.engine]

STALL_S = 20.0
STEPS = 20
SLEEPS, HELD = 'trainer.command=[sleep,"600"]', "+cluster.sbatch.hold=true"


@pytest.fixture(scope="module")
def busy() -> Iterator[SlurmCluster]:
    """Its clients wait long for an answer, as busy sites configure them."""
    cluster = SlurmCluster("node[0-1]", message_timeout_s=60)
    if not os.environ.get("CI") and (missing := missing_requirements(cluster.spec)):
        pytest.skip("; ".join(missing))
    with cluster:
        yield cluster
        cluster.cancel_all()


@contextmanager
def stalled(cluster: SlurmCluster) -> Iterator[None]:
    """For :data:`STALL_S` from now on slurmctld answers nothing."""
    assert cluster.directory is not None
    pid = int((cluster.directory / "run" / "slurmctld.pid").read_text())
    timer = threading.Timer(STALL_S, os.kill, (pid, signal.SIGCONT))
    os.kill(pid, signal.SIGSTOP)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def command(cluster: SlurmCluster, *words: str | Path) -> tuple[int, str, float]:
    """Exit code, output and seconds of one ``launcher`` command."""
    begin = time.monotonic()
    done = cluster.run([sys.executable, "-m", "launcher", *words], timeout_s=120, check=False, PYTHONPATH=str(ROOT))
    return done.returncode, done.stdout + done.stderr, time.monotonic() - begin


def test_a_submission_waits_and_says_so(busy: SlurmCluster, tmp_path: Path, model: Path) -> None:
    with stalled(busy):
        job = submit(busy, tmp_path, f"model.path={model}", SLEEPS, HELD)
    assert job.code == 0, job.output
    assert job.seconds > STALL_S - 5
    assert "launcher: still waiting for SLURM (`s" in job.output
    assert "Traceback" not in job.output
    assert [queued.job_id for queued in busy.jobs() if queued.state == "PENDING"] == [job.job_id]
    busy.cancel_all()


def test_a_run_ends_well_meanwhile_and_commands_wait_and_say_so(
    busy: SlurmCluster, tmp_path: Path, model: Path
) -> None:
    gate = tmp_path / "gate"
    words = json.dumps(["bash", "-c", f"until test -e {gate}; do sleep 0.1; done"])
    job = submit(busy, tmp_path, f"model.path={model}", SLEEPS, HELD)
    run = Run(busy, tmp_path, f"model.path={model}", "inference.enforce_eager=true", f"trainer.command={words}")
    try:
        run.wait(lambda: bool(run.find(1, "process", role="trainer", state="started")), "trainer")
        with stalled(busy):
            gate.touch()
            # What only shows a state does not wait that long: the last known one, and why it is no better.
            code, output, seconds = command(busy, "status", job.run_dir, "--once")
            assert code == 0, output
            assert seconds < STALL_S
            assert "still waiting for SLURM (`squeue`; at most 10 s)" in output
            assert "did not answer within 10 s" in output
            code, output, _ = command(busy, "cancel", job.run_dir)
        assert code == 0, output
        assert "still waiting for SLURM" in output
        assert f"job {job.job_id}: CANCELLED" in output
        assert busy.job_state(job.job_id) == "CANCELLED"
        assert run.launcher.wait(120) == 0, run.output + run.logs()
    finally:
        run.launcher.kill()
        run.launcher.wait()
        busy.cancel_all()
    assert run.end(1) == run.find(1, "finished")[0]["outcome"] == "completed"
    assert "Completed after " in run.output
    assert "Traceback" not in run.output + run.logs()
    assert busy.job_state(run.job_id) == "COMPLETED"
    assert not (run.path / "attempts" / "2").exists()


def ask_to_stop(run: Run) -> None:
    run.cluster.run(["scancel", "--signal=USR2", run.job_id])


def preempt(run: Run) -> None:
    urgent = ["--partition=urgent", "--nodes=2", "--exclusive", "--wrap=sleep 1", "--output=/dev/null"]
    run.cluster.run(["sbatch", *urgent])


@pytest.mark.parametrize(
    ("cause", "end", "why"),
    [
        (ask_to_stop, "stopped", "attempt 1: requeued: cancelled, job: a stop with a checkpoint was requested"),
        (preempt, "preempted", ": preempted, job: "),
    ],
)
def test_a_run_that_is_to_stop_meanwhile_is_queued_again(
    busy: SlurmCluster, tmp_path: Path, model: Path, cause: Callable[[Run], None], end: str, why: str
) -> None:
    shape = (f"model.path={model}", "inference.enforce_eager=true", "cluster.exclusive=true")
    run = Run(busy, tmp_path, *shape, saving_program(STEPS))
    try:
        run.wait_steps(1, 3)
        cause(run)
        run.wait(lambda: bool(run.find(1, "stopping")), "stop")
        with stalled(busy):
            # The checkpoint does not wait for SLURM.
            run.wait(lambda: bool(run.find(1, "checkpoint", state="end")), "checkpoint", STALL_S)
            assert not (run.path / "attempts" / "2").exists()
        run.wait_steps(2, 1)
        assert run.end(1) == end
        assert run.launcher.wait(2 * START_S) == 0, run.output + run.logs()
    finally:
        run.launcher.kill()
        run.launcher.wait()
        busy.cancel_all()
    assert why in command(busy, "why", run.path)[1]
    assert json.loads((run.path / "result.json").read_text())["attempt"] == "2"
    assert run.find(2, "resumed")[0]["step"] == run.find(1, "step")[-1]["step"]
    assert run.find(2, "finished")[0]["outcome"] == run.end(2) == "completed"
    busy.wait_empty()

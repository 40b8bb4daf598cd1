"""Workers: started with the right words, ended with all that belongs to them, and explained when they fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from launcher.common.env import LAUNCHER_STOP_FILE
from launcher.layout import Process, Role
from launcher.node.process import WorkerGroup, WorkerProcess, stop, tail
from tests.unit.processes import DETACHED, STUBBORN, Mark

pytestmark = pytest.mark.slow

CHILD_IN_GROUP = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("up", flush=True)
"""

DIES = """
import os, sys
from pathlib import Path
from tests.unit.processes import STUBBORN
from tests.unit.node.test_worker import wait_line, worker
wait_line(worker(Path(sys.argv[1]), {}, "python", "-c", STUBBORN), "up")
os.kill(os.getpid(), 9)
"""

SUBREAPER = """
import os, signal, subprocess, sys
from launcher.common.procfs import become_subreaper, descendants, reap_adopted
become_subreaper()
own = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
subprocess.run([sys.executable, "-c", sys.argv[1], sys.argv[2]], check=True)
(orphan,) = descendants(os.getpid()) if own.wait() == 3 else ()
os.kill(orphan, signal.SIGKILL)
while descendants(os.getpid()):
    pass
second = subprocess.Popen([sys.executable, "-c", "raise SystemExit(4)"])
os.waitid(os.P_PID, second.pid, os.WEXITED | os.WNOWAIT)
reap_adopted({second.pid})
reap_adopted(set()) if second.wait() == 4 else sys.exit("an own child was taken away")
children = open(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read().split()
sys.exit(f"left: {children}" if children else 0)
"""


@pytest.fixture
def mark() -> Iterator[Mark]:
    found = Mark()
    yield found
    found.kill()


def worker(folder: Path, env: Mapping[str, str], *argv: str) -> WorkerProcess:
    process = Process(
        name="trainer-0000",
        role=Role.TRAINER,
        node_rank=0,
        local_rank=0,
        rank=0,
        replica_rank=0,
        gpus=(),
        argv=argv,
        env={},
    )
    return WorkerProcess(process, {**os.environ, **env}, folder)


def wait_end(started: WorkerProcess, timeout_s: float = 20) -> int:
    deadline = time.monotonic() + timeout_s
    while (code := started.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return code


def wait_line(started: WorkerProcess, line: str, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while line not in tail(started.log):
        assert time.monotonic() < deadline, f"{line!r} is not in {started.log}"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("program", "code", "text"),
    [
        ("pass", 0, "exit code 0"),
        ("raise SystemExit(3)", 3, "exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", -9, "signal 9 (SIGKILL)"),
        ("import os; os.kill(os.getpid(), 11)", -11, "signal 11 (SIGSEGV)"),
    ],
)
def test_the_end_is_told_in_words(tmp_path: Path, mark: Mark, program: str, code: int, text: str) -> None:
    started = worker(tmp_path, mark.env, "python", "-c", program)
    assert wait_end(started) == code
    assert started.describe_end() == text


def test_python_is_the_agents_own_and_the_session_is_new(tmp_path: Path, mark: Mark) -> None:
    program = "import os, sys; print(sys.executable, os.getsid(0) == os.getpid(), 'LAUNCHER_PARENT_PID' in os.environ)"
    started = worker(tmp_path, mark.env, "python", "-c", program)
    assert wait_end(started) == 0
    assert tail(started.log) == [f"{sys.executable} True False"]


def test_a_program_that_does_not_exist_is_named(tmp_path: Path, mark: Mark) -> None:
    started = worker(tmp_path, mark.env, "/no/such/trainer")
    assert wait_end(started) == 127
    assert tail(started.log) == ["launcher: cannot run '/no/such/trainer': No such file or directory"]


def test_children_end_with_their_process_group(tmp_path: Path, mark: Mark) -> None:
    started = worker(tmp_path, mark.env, "python", "-c", CHILD_IN_GROUP)
    assert wait_end(started) == 0
    mark.wait_gone(5)


def test_a_worker_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path, mark: Mark) -> None:
    folders = [tmp_path / str(index) for index in range(3)]
    for folder in folders:
        folder.mkdir()
    started = [worker(folder, mark.env, "python", "-c", STUBBORN) for folder in folders]
    for each in started:
        wait_line(each, "up")
    begin = time.monotonic()
    stop(started, 0.5)
    assert 0.5 <= time.monotonic() - begin < 5
    assert [each.poll() for each in started] == [-signal.SIGKILL] * 3
    assert not mark.left()


def test_no_worker_holds_up_the_supervisor_while_it_is_killed(tmp_path: Path, mark: Mark) -> None:
    """A tracker of shared memory lives for another second, and a program that ignores SIGTERM for the whole grace."""
    started = []
    for index in range(3):
        (tmp_path / str(index)).mkdir()
        started.append(worker(tmp_path / str(index), mark.env, "python", "-c", STUBBORN))
    for each in started:
        wait_line(each, "up")
    group = WorkerGroup(Role.TRAINER, [each.process for each in started])
    group.started(0, started)
    begin = time.monotonic()
    group.stop(0.0)
    ended = group.advance()
    assert time.monotonic() - begin < 1
    while len(ended) < len(started):
        assert time.monotonic() - begin < 20
        before = time.monotonic()
        ended += group.advance()
        assert time.monotonic() - before < 1
        time.sleep(0.05)
    assert not group.is_stopping
    assert {each.poll() for each in started} == {-signal.SIGKILL}


def test_a_worker_that_ends_in_time_keeps_its_own_exit_code(tmp_path: Path, mark: Mark) -> None:
    program = "import signal, sys; signal.signal(15, lambda *_: sys.exit(4)); print('up', flush=True); signal.pause()"
    started = worker(tmp_path, mark.env, "python", "-c", program)
    wait_line(started, "up")
    begin = time.monotonic()
    stop([started], 30)
    assert time.monotonic() - begin < 10
    assert started.poll() == 4


def test_a_worker_dies_with_the_process_that_started_it(tmp_path: Path, mark: Mark) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DIES, str(tmp_path)], env={**os.environ, **mark.env}, timeout=30, check=False
    )
    assert done.returncode == -signal.SIGKILL
    mark.wait_gone(5)


def test_a_subreaper_collects_orphans_and_leaves_its_own_children_alone(tmp_path: Path, mark: Mark) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SUBREAPER, DETACHED, str(tmp_path / "detached")],
        env={**os.environ, **mark.env},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_tail_of_a_long_log_is_read_from_its_end(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"".join(b"line %d\n" % n for n in range(100_000)) + b"\xff cut")
    assert tail(log, 3) == ["line 99998", "line 99999", "\ufffd cut"]
    assert tail(tmp_path / "missing.log") == []


SURVIVES = """
import os, signal, subprocess, sys, time
from launcher.stopping import should_stop
assert not should_stop()
forked = os.fork()
if forked == 0:
    time.sleep(600)
program = "import time; print('up', flush=True); time.sleep(600)"
started = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
started.stdout.readline()
for pid in (forked, started.pid):
    os.kill(pid, signal.SIGTERM)
ends = os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]), started.wait()
print("ends", *ends, flush=True)
time.sleep(600)
"""
"""A trainer that asks whether to stop, and its children, which do not."""


def test_a_trainer_on_slurm_survives_what_slurm_sends_to_everybody(tmp_path: Path, mark: Mark) -> None:
    env = {**mark.env, LAUNCHER_STOP_FILE: str(tmp_path / "stop"), "SLURM_JOB_ID": "7"}
    trainer = worker(tmp_path, env, "python", "-c", SURVIVES)
    wait_line(trainer, "ends -15 -15")
    for signum in (signal.SIGTERM, signal.SIGUSR2, signal.SIGCONT):
        os.kill(trainer.pid, signum)
    time.sleep(0.5)
    assert trainer.poll() is None
    begin = time.monotonic()
    stop([trainer], 30)
    assert trainer.poll() == -signal.SIGKILL
    assert time.monotonic() - begin < 15
    mark.wait_gone(10)


def test_elsewhere_a_trainer_ends_when_it_is_asked_to(tmp_path: Path, mark: Mark) -> None:
    trainer = worker(tmp_path, {**mark.env, LAUNCHER_STOP_FILE: str(tmp_path / "stop")}, "python", "-c", SURVIVES)
    wait_line(trainer, "ends -15 -15")
    trainer.terminate()
    stop([trainer], 30)
    assert trainer.poll() == -signal.SIGTERM


def test_no_program_is_ended_by_the_signal_before_a_time_limit(tmp_path: Path, mark: Mark) -> None:
    other = worker(tmp_path, mark.env, "sh", "-c", "echo up; sleep 600")
    wait_line(other, "up")
    os.kill(other.pid, signal.SIGUSR2)
    time.sleep(0.5)
    assert other.poll() is None
    stop([other], 10)


def test_a_wish_to_stop_that_comes_before_the_program_does_not_end_it(tmp_path: Path, mark: Mark) -> None:
    # SLURM sends it to every process of a job, whatever that is just doing.
    started = worker(tmp_path, mark.env, "python", "-c", "import time; print('up', flush=True); time.sleep(60)")
    for _ in range(20):
        os.kill(started.pid, signal.SIGUSR2)
    wait_line(started, "up")
    assert started.poll() is None
    stop([started], 0)
    assert started.poll() == -signal.SIGTERM

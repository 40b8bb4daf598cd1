"""The shim: nothing that an agent started outlives it, however the agent, or the shim's signals, end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.common.procfs import descendants
from tests.unit.processes import DETACHED, STUBBORN, Mark, wait_for_file

pytestmark = pytest.mark.slow

SHIM = """
import os, sys
from pathlib import Path
from launcher.node.shim import supervise_agent
command = [sys.executable, "-c", sys.argv[1], sys.argv[2]]
code = supervise_agent(command, Path(sys.argv[3]), os.environ, lambda _: float(sys.argv[4]), stopped_s=1.0)
sys.exit(code if code >= 0 else 128 - code)
"""


@pytest.fixture
def mark() -> Iterator[Mark]:
    found = Mark()
    yield found
    found.kill()


class ShimProcess:
    """A shim above a stand-in agent that first starts a detached process."""

    def __init__(self, mark: Mark, folder: Path, then: str, patience_s: float = 30) -> None:
        self.log = folder / "agent.log"
        self.detached = folder / "detached"
        self.process = subprocess.Popen(
            [sys.executable, "-c", SHIM, DETACHED + then, str(self.detached), str(self.log), str(patience_s)],
            env={**os.environ, **mark.env},
            start_new_session=True,
        )

    def wait_ready(self) -> None:
        """Returns once the detached process is there and the agent says that it is up."""
        wait_for_file(self.detached)
        deadline = time.monotonic() + 20
        while "up" not in self.log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def agent(self) -> int:
        """Process id of the agent."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])


@pytest.mark.parametrize(("then", "code"), [("", 0), ("sys.exit(5)", 5), ("os.kill(os.getpid(), 9)", 137)])
def test_nothing_is_left_after_an_end_of_its_own(mark: Mark, tmp_path: Path, then: str, code: int) -> None:
    shim = ShimProcess(mark, tmp_path, then)
    assert shim.process.wait(20) == code
    assert shim.detached.exists()
    assert not mark.left()


def test_an_agent_that_stays_stopped_is_killed(mark: Mark, tmp_path: Path) -> None:
    shim = ShimProcess(mark, tmp_path, 'print("up", flush=True); signal.pause()')
    shim.wait_ready()
    os.kill(shim.agent(), signal.SIGSTOP)
    assert shim.process.wait(30) == 137
    assert not mark.left()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_signals_reach_the_agent(mark: Mark, tmp_path: Path, signum: signal.Signals) -> None:
    then = f"""
signal.signal({int(signum)}, lambda *_: sys.exit(7))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [{int(signum)}])
print("up", flush=True)
signal.pause()
"""
    shim = ShimProcess(mark, tmp_path, then)
    shim.wait_ready()
    shim.process.send_signal(signum)
    assert shim.process.wait(20) == 7
    assert not mark.left()


def test_a_signal_before_the_agent_listens_is_not_lost(mark: Mark, tmp_path: Path) -> None:
    then = """
print("up", flush=True)
time.sleep(1)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
signal.pause()
"""
    shim = ShimProcess(mark, tmp_path, then)
    shim.wait_ready()
    shim.process.terminate()
    assert shim.process.wait(20) == 7


def test_an_agent_that_was_killed_leaves_nothing(mark: Mark, tmp_path: Path) -> None:
    shim = ShimProcess(mark, tmp_path, "print('up', flush=True); signal.pause()")
    shim.wait_ready()
    os.kill(shim.agent(), signal.SIGKILL)
    assert shim.process.wait(20) == 137
    assert not mark.left()


def test_shared_memory_below_an_agent_that_was_killed_is_removed(mark: Mark, tmp_path: Path) -> None:
    # Nobody else would remove it: no resource tracker knows of it. The child has it mapped, too.
    then = """
from multiprocessing import resource_tracker, shared_memory
memory = shared_memory.SharedMemory(create=True, size=4096)
resource_tracker.unregister(memory._name, "shared_memory")
if os.fork() == 0:
    print("up", memory.name, flush=True)
    time.sleep(600)
signal.pause()
"""
    shim = ShimProcess(mark, tmp_path, then)
    shim.wait_ready()
    path = Path("/dev/shm", shim.log.read_text().split()[1])
    assert path.exists()
    os.kill(shim.agent(), signal.SIGKILL)
    assert shim.process.wait(20) == 137
    assert not mark.left()
    assert not path.exists()


def test_an_agent_that_ignores_the_end_is_killed_when_patience_ends(mark: Mark, tmp_path: Path) -> None:
    shim = ShimProcess(mark, tmp_path, STUBBORN, patience_s=0.5)
    shim.wait_ready()
    begin = time.monotonic()
    shim.process.terminate()
    shim.process.terminate()
    assert shim.process.wait(20) == 137
    assert 0.4 < time.monotonic() - begin < 10
    assert not mark.left()


def test_a_stopped_agent_ends_as_well(mark: Mark, tmp_path: Path) -> None:
    then = """
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
print("up", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
signal.pause()
"""
    shim = ShimProcess(mark, tmp_path, then)
    shim.wait_ready()
    shim.process.terminate()
    assert shim.process.wait(20) == 128 + signal.SIGTERM
    assert not mark.left()


def test_children_of_a_process_whose_first_thread_has_ended_are_found(tmp_path: Path) -> None:
    # The main thread ends, another one lives on: to `/proc` the process is a zombie, and yet it has its children.
    program = """
import ctypes, subprocess, sys, threading, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
threading.Thread(target=time.sleep, args=(60,)).start()
open(sys.argv[1], "w").write(str(child.pid))
ctypes.CDLL(None).syscall(60, 0)
"""
    told = tmp_path / "child"
    parent = subprocess.Popen([sys.executable, "-c", program, str(told)], start_new_session=True)
    try:
        deadline = time.monotonic() + 20
        while Path(f"/proc/{parent.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        found = descendants(os.getpid())
        assert int(told.read_text()) in found
        assert parent.pid not in found
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()


def test_a_log_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "attempts" / "1").mkdir(parents=True)
    (tmp_path / "attempts" / "1" / "logs").write_text("a file where a directory is to be")
    environ = {**os.environ, "LAUNCHER_LOCAL_NODE_RANK": "0", "LAUNCHER_LOCAL_HOSTNAMES": "gpu-1"}
    command = [sys.executable, "-m", "launcher.node.shim", str(tmp_path)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    log = tmp_path / "attempts" / "1" / "logs" / "agent-0000.log"
    assert done.stderr.startswith(f"launcher: {log} cannot be written on gpu-1: "), done.stderr
    assert "HINT: make room" in done.stderr
    assert "Traceback" not in done.stderr

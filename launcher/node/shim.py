"""The parent process of an agent: whatever happens to the agent, nothing that it started outlives the shim.

``python -m launcher.node.shim RUN_DIR`` is what one node runs. The shim starts the agent, passes signals on, and
when the agent has ended, in whatever way, ends every process that is left below it. It finds them because orphans are
handed to the agent, and from the agent to the shim, wherever in the tree they were (``PR_SET_CHILD_SUBREAPER``). In
turn the agent gets SIGTERM if the shim dies.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from launcher.common.env import LAUNCHER_SCRATCH
from launcher.common.errors import ControlError
from launcher.common.procfs import become_subreaper, descendants, end_descendants, is_stopped, signal_on_parent_death
from launcher.common.run_dir import attempt_dir
from launcher.common.startup import use_utf8
from launcher.config import load_run_config
from launcher.config.schema import Config
from launcher.events.failure_kinds import FailureKind
from launcher.events.schema import describe_exit
from launcher.node.context import NodeEnvironment, node_environment
from launcher.node.failover import node_0_killed, report_failure, run_node0_failover
from launcher.node.outcome import write_exit_code
from launcher.node.process import tail
from launcher.node.signals import FORWARDED_SIGNALS, SignalBuffer
from launcher.node.stale_resources import SharedMemory, inodes, make_scratch, record, remove_stale
from launcher.snapshot.record import CodeLocation, code_location

LEFTOVER_GRACE_S = 0.5
PATIENCE_S = 10.0
"""How much longer than ``stop_grace_s`` an agent may take to end after a signal."""

POLL_S = 1.0
AFTER_LEASE_S = 3.0
"""How much longer than its lease an agent may be stopped (SIGSTOP): node 0 reports the lost node first."""

ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
"""Signals that request the end; after them the end of an agent is expected."""


def run_shim(run_dir: Path, buffer: SignalBuffer | None = None) -> int:
    """Runs the agent of the node that this process is on. Main thread only.

    Args:
        buffer: holds the signals that came before.

    Returns:
        The node's exit code; node 0's is the run's.
    """
    buffer = buffer or SignalBuffer()
    node = node_environment()
    logs = attempt_dir(run_dir, node.attempt) / "logs"
    log = logs / f"agent-{node.node_rank:04d}.log"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        log.touch()
    except OSError as error:
        print(
            f"launcher: {log} cannot be written on {node.hostname}: {error.strerror}. HINT: make room, or set"
            " `output_dir` to another filesystem.",
            file=sys.stderr,
            flush=True,
        )
        return 1
    remove_stale()
    scratch = make_scratch()
    command = [sys.executable, "-X", "utf8", "-m", "launcher.node", str(run_dir), "--shim", str(os.getpid())]
    config = load_run_config(run_dir)
    try:
        code = supervise_agent(
            command,
            log,
            {**os.environ, LAUNCHER_SCRATCH: str(scratch)},
            _patience(config, is_local=node.is_local),
            code_location(run_dir),
            config.lease_timeout_s + AFTER_LEASE_S,
            buffer,
            scratch,
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    code = _report_end(run_dir, node, code, log, buffer.received)
    if code == ControlError.exit_code:
        # Nothing runs here any more. If node 0 is the one that is lost, another node has to requeue the job.
        run_node0_failover(run_dir, lambda: bool(ENDING & set(buffer.received)))
    if node.node_rank == 0:
        write_exit_code(code)
    return code


def _patience(config: Config, *, is_local: bool) -> Callable[[int], float]:
    """Seconds that an agent may take to end, by the signal that requested it."""
    at_once = config.stop_grace_s + PATIENCE_S
    checkpoint = config.checkpoint
    after_checkpoint = (
        at_once + checkpoint.stop_timeout_s + checkpoint.write_timeout_s + config.inference.drain_timeout_s
    )

    def patience_s(signum: int) -> float:
        # On SLURM it may announce a preemption; should the agent hang, SLURM ends it.
        may_save = signum == signal.SIGUSR2 or not is_local
        return after_checkpoint if may_save else at_once

    return patience_s


def _report_end(run_dir: Path, node: NodeEnvironment, code: int, log: Path, received: Sequence[int]) -> int:
    """The node's exit code, once the run knows how its agent ended."""
    if code == 0:
        return 0
    # An agent that ends with an error would do so again; one that received a signal was meant to end.
    was_killed = code < 0 and node.node_rank == 0 and not ENDING & set(received)
    report = node_0_killed if was_killed else report_failure
    return report(
        run_dir,
        f"The agent on node {node.node_rank} ({node.hostname}) ended with {describe_exit(code)}.",
        128 - code if code < 0 else code,
        log=str(log),
        tail=tail(log),
        kind=FailureKind.KILLED if code < 0 else FailureKind.UNKNOWN,
    )


def supervise_agent(
    command: Sequence[str],
    log: Path,
    environ: Mapping[str, str],
    patience_s: Callable[[int], float],
    place: CodeLocation | None = None,
    stopped_s: float = float("inf"),
    buffer: SignalBuffer | None = None,
    scratch: Path | None = None,
) -> int:
    """Runs one agent to its end, and what it started to its end. Main thread only.

    Args:
        command: the agent's command line.
        log: the agent's output is added to it.
        patience_s: an agent that has not ended so long after a signal is killed; of several signals the earliest end
            counts.
        place: where it runs, and with which code; where and as this process does if None.
        stopped_s: an agent that has been stopped (SIGSTOP) for so long is killed: by then the run has lost this node.
        buffer: holds the signals that came before.
        scratch: where to write down what is left should this process be killed.

    Returns:
        The agent's exit code, negative for a signal; 1 if a process that it started cannot be ended.
    """
    become_subreaper()
    agent: subprocess.Popen[bytes] | None = None

    received = buffer.received if buffer is not None else []
    memory = SharedMemory()

    def record_memory() -> None:
        # The agent records it, too, but may be killed.
        if memory.attribute({os.getpid(): descendants(os.getpid())}) and scratch is not None:
            record(scratch, inodes(memory.owned(os.getpid())))

    def forward(signum: int, _frame: FrameType | None = None) -> None:
        if signum not in received:
            received.append(signum)
        if agent is not None and agent.poll() is None:
            agent.send_signal(signum)
            # A stopped agent could not handle it.
            agent.send_signal(signal.SIGCONT)
            left_s, _ = signal.getitimer(signal.ITIMER_REAL)
            signal.setitimer(signal.ITIMER_REAL, min(left_s or math.inf, patience_s(signum)))

    def kill_late_agent(_signum: int, _frame: FrameType | None) -> None:
        if agent is not None and agent.poll() is None:
            agent.kill()

    # The agent begins with them blocked, too, and unblocks them when it listens: one that comes early is not lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED_SIGNALS)
    previous = {signum: signal.signal(signum, forward) for signum in FORWARDED_SIGNALS}
    previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, kill_late_agent)
    try:
        with log.open("ab") as output:
            agent = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=place.directory if place is not None else None,
                # A shim that a person starts by hand may not have it set.
                env=place.environment(environ) if place is not None else environ,
                start_new_session=True,
            )
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED_SIGNALS)
        for signum in list(received):
            forward(signum)
        code = _wait(agent, stopped_s, record_memory)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        record_memory()
        stuck = end_descendants(LEFTOVER_GRACE_S)
        memory.remove(os.getpid())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED_SIGNALS)
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if stuck:
        print(f"launcher: these processes cannot be ended: {stuck}", file=sys.stderr)
    return code or (1 if stuck else 0)


def _wait(agent: subprocess.Popen[bytes], stopped_s: float, on_poll: Callable[[], None]) -> int:
    stopped_since: float | None = None
    while True:
        try:
            return agent.wait(timeout=POLL_S)
        except subprocess.TimeoutExpired:
            on_poll()
            if not is_stopped(agent.pid):
                stopped_since = None
            elif stopped_since is None:
                stopped_since = time.monotonic()
            elif time.monotonic() - stopped_since > stopped_s:
                agent.kill()


def main() -> int:
    """Runs this node for as long as the process that started the shim lives."""
    use_utf8()
    parser = argparse.ArgumentParser(prog="launcher.node.shim")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--parent", type=int, help="process id of who starts the shim; without it, nothing runs")
    arguments = parser.parse_args()
    if arguments.parent is not None:
        signal_on_parent_death(signal.SIGTERM)
        if os.getppid() != arguments.parent:
            return 1
    return run_shim(arguments.run_dir)


if __name__ == "__main__":
    sys.exit(main())

"""Shows a trainer's program that the run was requested to stop: save a checkpoint, end the loop, exit with 0.

A time limit or a preemption is near, or a person sent SIGUSR2. In the loop, on every rank::

    if should_stop():
        checkpoints.save(step)
        break
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from launcher.common.env import LAUNCHER_CONTROL, LAUNCHER_STOP_FILE
from launcher.control.client import ControlClient
from launcher.control.model import STOP_ACKNOWLEDGED


def is_stop_requested() -> bool:
    """Whether the run was requested to stop, as known on this node. It checks for a file, in microseconds.

    Nodes learn of it at different moments, so that ranks may differ for a while: use :func:`should_stop` in a loop.
    """
    path = os.environ.get(LAUNCHER_STOP_FILE)
    return path is not None and Path(path).exists()


def should_stop() -> bool:
    """The same answer on every rank, at the same step: true if the request has reached any rank's node.

    Every rank must call it equally often, after ``init_process_group``; it reduces one number over the default group.
    From the first call on this process survives SIGTERM on SLURM, which sends it to every process of a job that it is
    about to queue again; the agent, who knows what it means, ends this process if it is the end.

    After it was true the engines end, and the run waits for the trainer until ``checkpoint.stop_timeout_s``, and while
    a checkpoint is being written until ``checkpoint.write_timeout_s``.

    Raises:
        ControlError: the control service is gone, which means that the run is ending.
    """
    survive_sigterm()
    requested = _any_rank(is_stop_requested())
    if requested and os.environ.get("RANK", "0") == "0" and os.environ.get(LAUNCHER_CONTROL):
        client = ControlClient.from_environment()
        client.put(STOP_ACKNOWLEDGED, True)
        client.close()
    return requested


def survive_sigterm() -> None:
    """Lets SIGTERM pass by, in a process of a run on SLURM that has no handler of its own for it. Main thread only."""
    path = os.environ.get(LAUNCHER_STOP_FILE)
    if path is None or "SLURM_JOB_ID" not in os.environ or threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return
    # A handler and not SIG_IGN, which programs that this one starts would inherit. Those that it forks do as before.
    signal.signal(signal.SIGTERM, lambda *_: None)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    survivor(path, os.getpid()).touch()


def survivor(stop_file: str, pid: int) -> Path:
    """Exists if a process survives SIGTERM."""
    return Path(f"{stop_file}.{pid}")


def _any_rank(requested: bool) -> bool:
    # A program that has not imported torch has no ranks to agree with.
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return requested
    if torch.distributed.get_world_size() == 1:
        return requested
    device = "cuda" if "nccl" in str(torch.distributed.get_backend()) else "cpu"
    answer = torch.tensor([requested], dtype=torch.int32, device=device)
    torch.distributed.all_reduce(answer, op=torch.distributed.ReduceOp.MAX)
    return bool(answer.item())

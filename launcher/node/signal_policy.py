"""What a signal to this run means, and what follows: decided by node 0, whoever received it."""

from __future__ import annotations

import logging
import queue
import signal
import threading
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from launcher.common.attempts import End, record_end
from launcher.config.schema import Config, SlurmClusterConfig
from launcher.control.client import ControlClient
from launcher.node.node_environment import NodeEnvironment
from launcher.slurm.job_signals import SignalCause, signal_cause

logger = logging.getLogger(__name__)


class Reason(StrEnum):
    """Why a run is to stop after a checkpoint."""

    TIME_LIMIT = "time limit"
    PREEMPTION = "preemption"
    REQUEUE = "requeue"
    REQUEST = "request"

    @property
    def end(self) -> End:
        """What the attempt counts as."""
        if self is Reason.TIME_LIMIT:
            return End.TIMED_OUT
        return End.STOPPED if self is Reason.REQUEST else End.PREEMPTED


def decide(name: str, find_cause: Callable[[], SignalCause | None] | None) -> Reason | None:
    """What follows a signal: a stop after a checkpoint, for this reason; or, None, the end at once.

    Args:
        name: of the signal: SIGUSR2 asks for a stop with a checkpoint, the others for the end.
        find_cause: asks SLURM what it is about to do; None outside of SLURM.
    """
    is_wish = name == signal.SIGUSR2.name
    if find_cause is None:
        return Reason.REQUEST if is_wish else None
    told = find_cause()
    logger.info("%s; SLURM says %s", name, told)
    if told is None:
        # Should it be a preemption, the checkpoint is what matters; should it be the end, SIGKILL comes soon.
        return Reason.REQUEST if is_wish else Reason.REQUEUE
    if told.is_requeued:
        return Reason.PREEMPTION if is_wish else Reason.REQUEUE
    if told.is_preempted:
        return Reason.PREEMPTION
    if told.is_out_of_time:
        return Reason.TIME_LIMIT
    return Reason.REQUEST if is_wish and not told.is_ending else None


class Judge:
    """Node 0's thread that decides, and tells the control service; asking SLURM may take seconds."""

    def __init__(self, config: Config, run_dir: Path, node: NodeEnvironment) -> None:
        self._run_dir = run_dir
        self._attempt = node.attempt
        self._find_cause: Callable[[], SignalCause | None] | None = None
        if not node.is_local:
            signal_s = config.cluster.signal_s if isinstance(config.cluster, SlurmClusterConfig) else 0
            self._find_cause = lambda: signal_cause(signal_s)
        self._heard: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._known: set[str] = set()
        self._client: ControlClient | None = None
        self._thread = threading.Thread(target=self._run, name="judge", daemon=True)

    def start(self, client: ControlClient) -> None:
        """Begins to decide.

        Args:
            client: nobody else's.
        """
        self._client = client
        self._thread.start()

    def hear(self, name: str) -> None:
        """A node has received a signal; the same one from another node changes nothing."""
        if name not in self._known:
            self._known.add(name)
            self._heard.put(name)

    def close(self) -> None:
        """Ends the thread."""
        self._heard.put(None)
        if self._client is not None:
            self._thread.join(timeout=1)
            self._client.close()

    def _run(self) -> None:
        assert self._client is not None
        while (name := self._heard.get()) is not None:
            reason = decide(name, self._find_cause)
            if reason is None:
                self._client.call("cancel", reason=name)
            else:
                # Now, because SLURM may not leave the time to do it later.
                record_end(self._run_dir, self._attempt, reason.end)
                self._client.call("stop", reason=reason.value)

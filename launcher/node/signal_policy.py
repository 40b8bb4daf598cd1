"""What a signal to this run means, and what follows: decided on node 0, whichever node received it."""

from __future__ import annotations

import logging
import queue
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from launcher.common.errors import ControlError
from launcher.common.run_dir import End, record_end
from launcher.config.schema import Config, SlurmClusterConfig
from launcher.control.client import ControlClient
from launcher.control.model import StopReason
from launcher.control.protocol import CancelRequest, StopRunRequest
from launcher.node.context import NodeEnvironment
from launcher.slurm.job_signals import SignalCause, signal_cause

logger = logging.getLogger(__name__)

PROVISIONAL_S = 2.0
"""Longest wait for SLURM before the stop begins with what is known; SLURM may kill the job 5 s after its signal."""

LOOKUP_TIMEOUT_S = 60.0
"""An answer that comes later than :data:`PROVISIONAL_S` still corrects the reason."""


def end_of(reason: StopReason) -> End:
    """What an attempt that stopped for a reason counts as."""
    if reason is StopReason.TIME_LIMIT:
        return End.TIMED_OUT
    return End.STOPPED if reason is StopReason.REQUEST else End.PREEMPTED


def decide(name: str, now: SignalCause | None) -> StopReason | None:
    """What follows a signal on SLURM: a stop after a checkpoint, for this reason; or, None, the end at once.

    Args:
        name: of the signal: SIGUSR2 requests a stop with a checkpoint, the others the end.
        now: what SLURM is about to do; None if that is not known (yet).
    """
    is_request = name == signal.SIGUSR2.name
    if now is None:
        # Should it be a preemption, the checkpoint is what matters; should it be the end, SIGKILL comes soon.
        return StopReason.REQUEST if is_request else StopReason.REQUEUE
    if now.is_requeued:
        return StopReason.PREEMPTION if is_request else StopReason.REQUEUE
    if now.is_preempted:
        return StopReason.PREEMPTION
    if now.is_out_of_time:
        return StopReason.TIME_LIMIT
    return StopReason.REQUEST if is_request and not now.is_ending else None


def decide_local(name: str) -> StopReason | None:
    """The same outside of SLURM, where nothing else is known about a signal."""
    return StopReason.REQUEST if name == signal.SIGUSR2.name else None


class SignalPolicy:
    """Node 0's threads that decide, one for each kind of signal, because a lookup may take long.

    The best known reason counts, not the first one: a preemption may begin with a SIGUSR2 for which SLURM has no
    explanation yet, or to whose lookup it answers late.
    """

    def __init__(self, config: Config, run_dir: Path, node: NodeEnvironment) -> None:
        self._run_dir = run_dir
        self._attempt = node.attempt
        self._look_up: Callable[[], SignalCause | None] | None = None
        if not node.is_local:
            signal_s = config.cluster.signal_s if isinstance(config.cluster, SlurmClusterConfig) else 0
            self._look_up = lambda: signal_cause(signal_s, timeout_s=LOOKUP_TIMEOUT_S)
        self._lock = threading.Lock()
        """Taken by the control service's thread, so it is never held during a call of that service."""

        self._applying = threading.Lock()
        self._waiting: list[str] = []
        self._known: set[str] = set()
        self._reason: StopReason | None = None
        self._client: ControlClient | None = None
        self._is_closed = False

    @property
    def reason(self) -> StopReason | None:
        """The best known reason of the stop; None while there is none."""
        return self._reason

    def start(self, client: ControlClient) -> None:
        """Begins to decide; signals that came before are handled now.

        Args:
            client: not shared.
        """
        with self._lock:
            self._client = client
            waiting, self._waiting = self._waiting, []
        for name in waiting:
            self._spawn(name)

    def handle(self, name: str) -> None:
        """A node has received a signal; the same one from another node changes nothing."""
        with self._lock:
            if name in self._known:
                return
            self._known.add(name)
            if self._client is None:
                self._waiting.append(name)
                return
        self._spawn(name)

    def close(self) -> None:
        """From now on nothing is decided any more."""
        self._is_closed = True
        if self._client is not None:
            self._client.close()

    def _spawn(self, name: str) -> None:
        threading.Thread(target=self._decide, args=(name,), name=f"signal-{name}", daemon=True).start()

    def _decide(self, name: str) -> None:
        look_up = self._look_up
        if look_up is None:
            self._apply(name, decide_local(name))
            return
        answers: queue.SimpleQueue[SignalCause | None] = queue.SimpleQueue()
        threading.Thread(target=lambda: answers.put(look_up()), name=f"lookup-{name}", daemon=True).start()
        try:
            now = answers.get(timeout=PROVISIONAL_S)
        except queue.Empty:
            logger.info("%s; no answer from SLURM within %g s", name, PROVISIONAL_S)
            self._apply(name, decide(name, None))
            now = answers.get()
            if now is None:
                return
        logger.info("%s; SLURM: %s", name, now)
        self._apply(name, decide(name, now))

    def _apply(self, name: str, reason: StopReason | None) -> None:
        with self._applying:
            if self._is_closed or self._client is None:
                return
            try:
                if reason is None:
                    self._client.call(CancelRequest(reason=name))
                elif reason.replaces(self._reason):
                    self._reason = reason
                    # Now, because SLURM may not leave the time to do it later.
                    record_end(self._run_dir, self._attempt, end_of(reason))
                    self._client.call(StopRunRequest(reason=reason))
            except ControlError as error:
                logger.warning("%s had no effect: %s", name, error)

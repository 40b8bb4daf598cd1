"""The agent's heartbeat: renews its lease and receives the assignment, from a thread with a connection of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from launcher.common.errors import ControlError
from launcher.control.client import ControlClient
from launcher.control.model import Assignment, Phase
from launcher.control.protocol import HeartbeatRequest
from launcher.events.schema import FailureReported

INTERVAL_S = 1.0
REPLY_S = 2.0
"""Longest wait for an answer that is due; after that a new connection is tried, which finds a healed network sooner."""


class Heartbeat:
    """Keeps :attr:`phase` and :attr:`assignment` up to date. A change arrives at once, not at the next interval.

    Args:
        client: not shared.
        lease_timeout_s: without an answer for so long this node counts as lost.
        has_ended: called when node 0 does not answer; whether the event log holds the end of the run.
    """

    def __init__(
        self,
        client: ControlClient,
        node_rank: int,
        lease_timeout_s: float,
        has_ended: Callable[[], bool] = lambda: False,
    ) -> None:
        self.phase = Phase.STARTING
        self.assignment = Assignment()
        self.failure: FailureReported | None = None
        self._error = ""
        self._failing_since: float | None = None
        self._client = client
        self._node_rank = node_rank
        self._lease_timeout_s = lease_timeout_s
        self._has_ended = has_ended
        self._answered = time.monotonic()
        self._stop = threading.Event()
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    @property
    def lost(self) -> str | None:
        """Why the control service counts as lost; None while this node's lease lasts.

        The lease is counted from when an answered request was sent, so that it runs out here before it does there.
        """
        if time.monotonic() - self._answered <= self._lease_timeout_s:
            return None
        return self._error or f"no answer within `lease_timeout_s` ({self._lease_timeout_s:g})"

    @property
    def failing_s(self) -> float:
        """Seconds since the first request without a reply; 0 if the last one had one."""
        return 0.0 if self._failing_since is None else time.monotonic() - self._failing_since

    def start(self) -> None:
        """Starts the thread."""
        self._answered = time.monotonic()
        self._thread.start()

    def wait_past(self, phase: Phase) -> Phase:
        """Blocks until the run has left ``phase``, the lease is lost, or this is closed; returns the phase then."""
        with self._news:
            self._news.wait_for(lambda: self.phase is not phase or self.lost is not None or self._stop.is_set())
            return self.phase

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        with self._news:
            self._news.notify_all()
        self._thread.join(timeout=2 * INTERVAL_S)
        self._client.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            sent = time.monotonic()
            try:
                reply = self._client.call(
                    HeartbeatRequest(
                        node_rank=self._node_rank,
                        phase=self.phase,
                        revision=self.assignment.revision,
                        wait_s=INTERVAL_S,
                    ),
                    timeout_s=INTERVAL_S + REPLY_S,
                )
            except ControlError as error:
                self._error = str(error)
                self._failing_since = self._failing_since or time.monotonic()
                if self._has_ended():
                    self._answered = float("-inf")
                self._stop.wait(INTERVAL_S / 4)
                continue
            self._answered, self._failing_since = sent, None
            self.failure = reply.failure
            if reply.assignment is not None:
                self.assignment = reply.assignment
            with self._news:
                self.phase = reply.phase
                self._news.notify_all()

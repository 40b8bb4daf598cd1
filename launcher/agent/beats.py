"""The agent's heartbeat: renews its lease and learns the run's phase, from a thread with a connection of its own."""

from __future__ import annotations

import threading
import time
from typing import Any

from launcher.control.client import ControlClient
from launcher.control.state import Phase
from launcher.errors import ControlError

BEAT_S = 1.0


class Beats:
    """Keeps :attr:`phase` up to date. A change of phase arrives at once, not at the next beat."""

    def __init__(self, client: ControlClient, node_rank: int, lease_timeout_s: float) -> None:
        self.phase = Phase.STARTING
        self.failure: dict[str, Any] | None = None
        self.lost: str | None = None
        """Why the control service counts as gone; None while it answers."""

        self._client = client
        self._node_rank = node_rank
        self._lease_timeout_s = lease_timeout_s
        self._stop = threading.Event()
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="beats", daemon=True)

    def start(self) -> None:
        """Starts beating."""
        self._thread.start()

    def wait_past(self, phase: Phase) -> Phase:
        """Blocks until the run has left ``phase``, or nobody beats any more; the phase it is in then."""
        with self._news:
            self._news.wait_for(lambda: self.phase is not phase or self.lost is not None or self._stop.is_set())
            return self.phase

    def close(self) -> None:
        """Stops beating."""
        self._stop.set()
        with self._news:
            self._news.notify_all()
        self._thread.join(timeout=2 * BEAT_S)
        self._client.close()

    def _run(self) -> None:
        answered = time.monotonic()
        while not self._stop.is_set():
            try:
                reply = self._client.call(
                    "beat",
                    node_rank=self._node_rank,
                    phase=self.phase.value,
                    wait_s=BEAT_S,
                    timeout_s=self._lease_timeout_s,
                )
            except ControlError as error:
                if time.monotonic() - answered > self._lease_timeout_s:
                    with self._news:
                        self.lost = str(error)
                        self._news.notify_all()
                    return
                self._stop.wait(BEAT_S / 4)
                continue
            answered = time.monotonic()
            self.failure = reply["failure"]
            with self._news:
                self.phase = Phase(reply["phase"])
                self._news.notify_all()

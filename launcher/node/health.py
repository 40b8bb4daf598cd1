"""Polls an engine's ``/health`` from a thread, so that the agent never waits for it."""

from __future__ import annotations

import threading
import time
from enum import Enum, auto

from launcher.common import http

STARTING_POLL_S = 0.5
POLL_S = 2.0
CALL_TIMEOUT_S = 5.0


class HealthMonitor:
    """Polls one engine until it is closed.

    Args:
        url: base URL of the engine.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_ready = False
        """Whether it has ever been healthy."""

        self._answered = time.monotonic()
        self._refused_since: float | None = None
        self._stop = threading.Event()
        threading.Thread(target=self._run, name="health", daemon=True).start()

    def silent_s(self) -> float:
        """Seconds since it was healthy."""
        return time.monotonic() - self._answered

    def refused_s(self) -> float:
        """Seconds since it answered with an error or closed its port; 0 while it does neither.

        A server whose engine core has died does so at once, but may wait long for its connections before it ends.
        """
        since = self._refused_since
        return 0.0 if since is None else time.monotonic() - since

    def close(self) -> None:
        """Stops polling."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            requested = time.monotonic()
            health = get_health(f"{self.url}/health")
            if health is Health.HEALTHY:
                self._answered = requested
                self.is_ready = True
            if health is not Health.REFUSED:
                self._refused_since = None
            elif self.is_ready:
                self._refused_since = self._refused_since or requested
            self._stop.wait(POLL_S if self.is_ready else STARTING_POLL_S)


class Health(Enum):
    """Result of one request."""

    HEALTHY = auto()
    REFUSED = auto()
    """It answers with an error, or nothing listens at the port."""

    NO_ANSWER = auto()
    """None within :data:`CALL_TIMEOUT_S`: it may be busy, or hang."""


def get_health(url: str) -> Health:
    """Requests a URL whose answer is 200 if the engine is healthy."""
    try:
        reply = http.request("GET", url, timeout_s=CALL_TIMEOUT_S)
    except http.HttpError as error:
        return Health.REFUSED if error.is_refused else Health.NO_ANSWER
    return Health.HEALTHY if reply.status == 200 else Health.REFUSED

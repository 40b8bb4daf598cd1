"""Follows an engine's ``/health``, without holding up the agent."""

from __future__ import annotations

import http.client
import threading
import time
import urllib.request

STARTING_POLL_S = 0.5
POLL_S = 2.0
CALL_TIMEOUT_S = 5.0
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Health:
    """Polls one engine from a thread until it is closed.

    Args:
        url: base URL of the engine.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_ready = False
        """Whether it has ever been healthy."""

        self._answered = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)
        self._thread.start()

    def silent_s(self) -> float:
        """Seconds since it was healthy."""
        return time.monotonic() - self._answered

    def close(self) -> None:
        """Stops polling."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            asked = time.monotonic()
            if healthy(f"{self.url}/health"):
                self._answered = asked
                self.is_ready = True
            self._stop.wait(POLL_S if self.is_ready else STARTING_POLL_S)


def healthy(url: str) -> bool:
    """True if the URL answers 200 soon."""
    try:
        # Nodes talk to each other directly, whatever proxy the environment names for the world outside.
        with DIRECT.open(url, timeout=CALL_TIMEOUT_S) as reply:
            return bool(reply.status == 200)
    except (OSError, http.client.HTTPException):
        return False

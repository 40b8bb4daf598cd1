"""Waits for an engine's ``/health``, without holding up the agent."""

from __future__ import annotations

import http.client
import threading
import urllib.request

POLL_S = 0.5
CALL_TIMEOUT_S = 5.0
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Readiness:
    """Polls one engine from a thread until it is healthy or closed.

    Args:
        url: base URL of the engine.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_ready = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="readiness", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops polling."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            if healthy(f"{self.url}/health"):
                self.is_ready = True
                return
            self._stop.wait(POLL_S)


def healthy(url: str) -> bool:
    """True if the URL answers 200 soon."""
    try:
        # Nodes talk to each other directly, whatever proxy the environment names for the world outside.
        with DIRECT.open(url, timeout=CALL_TIMEOUT_S) as reply:
            return bool(reply.status == 200)
    except (OSError, http.client.HTTPException):
        return False

"""Waits for an engine's ``/health``, without holding up the agent."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable

POLL_S = 0.5
CALL_TIMEOUT_S = 5.0


class Readiness:
    """Polls one engine from a thread until it is healthy or closed.

    Args:
        url: base URL of the engine.
        on_ready: called once, in the thread, with the seconds waited.
    """

    def __init__(self, url: str, on_ready: Callable[[float], None]) -> None:
        self._url = f"{url}/health"
        self._on_ready = on_ready
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="readiness", daemon=True)

    def start(self) -> None:
        """Starts polling."""
        self._thread.start()

    def close(self) -> None:
        """Stops polling."""
        self._stop.set()

    def _run(self) -> None:
        begin = time.monotonic()
        while not self._stop.is_set():
            if healthy(self._url):
                self._on_ready(time.monotonic() - begin)
                return
            self._stop.wait(POLL_S)


def healthy(url: str) -> bool:
    """True if the URL answers 200 soon."""
    try:
        with urllib.request.urlopen(url, timeout=CALL_TIMEOUT_S) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False

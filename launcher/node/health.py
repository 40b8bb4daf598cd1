"""Follows an engine's ``/health``, without holding up the agent."""

from __future__ import annotations

import http.client
import threading
import time
import urllib.error
import urllib.request
from enum import Enum, auto

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
        self._refused_since: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)
        self._thread.start()

    def silent_s(self) -> float:
        """Seconds since it was healthy."""
        return time.monotonic() - self._answered

    def refused_s(self) -> float:
        """Seconds since it answered with an error or closed its port; 0 while it does neither.

        One whose core has died does so at once, but may wait long for its connections to be closed before it ends.
        """
        since = self._refused_since
        return 0.0 if since is None else time.monotonic() - since

    def close(self) -> None:
        """Stops polling."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            asked = time.monotonic()
            answer = ask(f"{self.url}/health")
            if answer is Answer.HEALTHY:
                self._answered = asked
                self.is_ready = True
            if answer is not Answer.REFUSED:
                self._refused_since = None
            elif self.is_ready:
                self._refused_since = self._refused_since or asked
            self._stop.wait(POLL_S if self.is_ready else STARTING_POLL_S)


class Answer(Enum):
    """To the question whether an engine is healthy."""

    HEALTHY = auto()
    REFUSED = auto()
    """It answers with an error, or nobody listens."""

    NONE = auto()
    """Not soon: it may be busy, or hang."""


def ask(url: str) -> Answer:
    """Asks a URL, which answers 200 if all is well."""
    try:
        # Nodes talk to each other directly, whatever proxy the environment names for the world outside.
        with DIRECT.open(url, timeout=CALL_TIMEOUT_S) as reply:
            return Answer.HEALTHY if reply.status == 200 else Answer.REFUSED
    except urllib.error.HTTPError:
        return Answer.REFUSED
    except (OSError, http.client.HTTPException) as error:
        is_closed = isinstance(getattr(error, "reason", error), ConnectionRefusedError)
        return Answer.REFUSED if is_closed else Answer.NONE

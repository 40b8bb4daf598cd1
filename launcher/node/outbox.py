"""What an agent has to tell the run, sent in order from a thread, so that a network that is cut holds up nobody."""

from __future__ import annotations

import logging
import queue
import threading
import time

from launcher.common.errors import ControlError, ControlRefusal
from launcher.control.client import ControlClient
from launcher.control.protocol import ControlRequest, Reply

logger = logging.getLogger(__name__)

CALL_TIMEOUT_S = 3.0
RETRY_S = 0.25


class Outbox:
    """Sends each message until it is answered. Messages that are refused are dropped, with a line in the log."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client
        self._queue: queue.SimpleQueue[ControlRequest[Reply]] = queue.SimpleQueue()
        self._unsent = 0
        self._all_sent = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def send(self, request: ControlRequest[Reply]) -> None:
        """Queues one message, and returns at once."""
        with self._all_sent:
            self._unsent += 1
        self._queue.put(request)

    def flush(self, timeout_s: float) -> bool:
        """Waits until everything has been sent; False if it has not after ``timeout_s``."""
        with self._all_sent:
            return self._all_sent.wait_for(lambda: self._unsent == 0, timeout_s)

    def close(self) -> None:
        """Stops; what has not been sent is lost."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            request = self._queue.get()
            while not self._stop.is_set() and not self._deliver(request):
                time.sleep(RETRY_S)
            with self._all_sent:
                self._unsent -= 1
                self._all_sent.notify_all()

    def _deliver(self, request: ControlRequest[Reply]) -> bool:
        try:
            self._client.call(request, timeout_s=CALL_TIMEOUT_S)
        except ControlRefusal as error:
            logger.error("%s", error)
        except ControlError:
            return False
        return True

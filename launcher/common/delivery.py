"""A thread that delivers what is queued, in order, so that nobody waits for a receiver that is slow or gone."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class DeliveryThread(Generic[T]):
    """Delivers each item until that succeeds, and then the next one.

    Args:
        deliver: called in the thread; False means that it failed and is to be tried again.
        retry_s: the pause before that.
    """

    def __init__(self, deliver: Callable[[T], bool], *, name: str, retry_s: float) -> None:
        self._deliver = deliver
        self._retry_s = retry_s
        self._queue: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._left = 0
        self._all_delivered = threading.Condition()
        self._is_closing = threading.Event()
        self._is_closed = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def put(self, item: T) -> None:
        """Queues one item, and returns at once."""
        with self._all_delivered:
            self._left += 1
        self._queue.put(item)

    def flush(self, timeout_s: float) -> bool:
        """Waits until everything is delivered; False if it isn't after ``timeout_s``."""
        with self._all_delivered:
            return self._all_delivered.wait_for(lambda: self._left == 0, timeout_s)

    def close(self, timeout_s: float = 0.0) -> None:
        """Tries what is left once more, for at most ``timeout_s``; the rest is lost."""
        self._is_closed = timeout_s == 0.0
        self._is_closing.set()
        self.flush(timeout_s)
        self._is_closed = True

    def _run(self) -> None:
        while not self._is_closed:
            item = self._queue.get()
            while not self._is_closed and not self._deliver(item):
                if self._is_closing.wait(self._retry_s):
                    break
            with self._all_delivered:
                self._left -= 1
                self._all_delivered.notify_all()

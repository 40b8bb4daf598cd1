"""One update: its report, its handle while it goes on in the background, and the queue that carries updates out."""

from __future__ import annotations

import atexit
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from launcher.common.errors import TransferError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """What one update did; the same on every rank."""

    version: int
    seconds: float
    """From the call until every replica served the version; includes connecting, the first time."""

    bytes: int
    """Bytes sent by all trainer ranks to all replicas; what replicas relay to each other does not count."""

    density: float | None
    """Share of the elements that had changed since the version that a replica had, where only those were sent; None if
    no replica was sent changes.
    """

    pause_s: float
    """Longest time in seconds for which a replica did not decode."""

    replicas: int
    """Replicas that serve the version."""


Publish = Callable[[Callable[[], None]], UpdateReport]
"""Carries out one update, and calls its argument once the trainer's weights have been read."""


class Update:
    """One version on its way to the engines; made by :meth:`launcher.bridge.trainer.api.Bridge.publish_async`.

    Any thread may call its methods.
    """

    def __init__(self, version: int) -> None:
        self.version = version
        self._read = threading.Event()
        self._done = threading.Event()
        self._report: UpdateReport | None = None
        self._error: BaseException | None = None
        self.is_observed = False
        """Whether somebody has asked for the result."""

    @property
    def is_done(self) -> bool:
        """Whether it has ended, well or not; never waits."""
        return self._done.is_set()

    def wait(self) -> None:
        """Waits until it has ended, well or not; its own deadlines see to that."""
        self._done.wait()

    def wait_read(self) -> None:
        """Waits until the trainer's weights may be written again: they have been read, or the update has failed.

        Each step of an update has its deadline (``bridge.timeout_s``), so this ends.
        """
        self._read.wait()

    def result(self, timeout_s: float | None = None) -> UpdateReport:
        """What :meth:`~launcher.bridge.trainer.api.Bridge.publish` returns or raises, as soon as the update has ended.

        Args:
            timeout_s: longest wait; until its own deadlines end the update if None.

        Raises:
            TransferError: fewer replicas than wanted took the version; or it has not ended after ``timeout_s``.
        """
        if not self._done.wait(timeout_s):
            raise TransferError(f"Version {self.version} has not reached the engines after {timeout_s:g} s.")
        self.is_observed = True
        if self._error is not None:
            raise self._error
        assert self._report is not None
        return self._report

    @property
    def error(self) -> BaseException | None:
        """Why it has failed; None if it has not, or not yet."""
        return self._error

    def carry_out(self, publish: Publish) -> None:
        """Runs the update to its end, in the publisher's thread."""
        try:
            self._report = publish(self._read.set)
        except BaseException as error:
            self._error = error
        finally:
            self._read.set()
            self._done.set()


class UpdateQueue:
    """Carries out updates in a thread, one after the other."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Update, Publish] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._pending: deque[Update] = deque()

    def submit(self, version: int, publish: Publish) -> Update:
        """Has an update carried out after those that were submitted before.

        Raises:
            TransferError: one before has failed, and nobody has asked for its result.
        """
        self._forget_done()
        if self._thread is None:
            device = torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
            self._thread = threading.Thread(target=self._run, args=(device,), name="bridge-publish", daemon=True)
            self._thread.start()
            atexit.register(self._finish)
        update = Update(version)
        self._pending.append(update)
        self._queue.put((update, publish))
        return update

    def wait_read(self) -> None:
        """Waits until no update reads the trainer's weights any more."""
        for update in self._pending:
            update.wait_read()

    def drain(self) -> None:
        """Waits until every update has ended.

        Raises:
            TransferError: one has failed, and nobody has asked for its result.
        """
        for update in self._pending:
            update.wait()
        self._forget_done()

    def close(self) -> None:
        """Ends the thread after the updates that were submitted. An error that nobody has asked for is logged."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
            atexit.unregister(self._finish)
            self._finish()

    def _finish(self) -> None:
        """Waits for updates on their way, as at the end of a program that did not close the bridge."""
        for update in self._pending:
            if not update.is_done:
                logger.warning("the program ends; version %d is still on its way to the engines", update.version)
            update.wait()
            if update.error is not None and not update.is_observed:
                logger.error("version %d did not reach the engines: %s", update.version, update.error)

    def _forget_done(self) -> None:
        while self._pending and self._pending[0].is_done:
            update = self._pending.popleft()
            if not update.is_observed:
                update.result()

    def _run(self, device: int | None) -> None:
        if device is not None:
            torch.cuda.set_device(device)
        while (entry := self._queue.get()) is not None:
            update, publish = entry
            update.carry_out(publish)

"""The same thing for every replica at once; the first error counts and is not made to wait for the others."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from launcher.common.errors import TransferError

T = TypeVar("T")


LOOK_S = 2.0
"""How often a call that takes long is asked whether it should be given up."""


def in_parallel(
    calls: Sequence[Callable[[], T]],
    *,
    timeout_s: float | None = None,
    why_stop: Callable[[], str | None] = lambda: None,
) -> list[T]:
    """Results in the order of the calls.

    The threads are daemons: a call that hangs, in a library that knows no deadlines, keeps neither the caller nor the
    program.

    Args:
        calls: what is to be done.
        timeout_s: longest wait; None for any.
        why_stop: asked now and then while a call takes long; a reason to wait no longer.

    Raises:
        BaseException: what the first failing call raised.
        TransferError: a call has not returned after ``timeout_s``, or need not be waited for; it is left behind.
    """
    done: queue.SimpleQueue[tuple[int, T | None, BaseException | None]] = queue.SimpleQueue()

    def run(index: int, call: Callable[[], T]) -> None:
        try:
            done.put((index, call(), None))
        except BaseException as error:
            done.put((index, None, error))

    for index, call in enumerate(calls):
        threading.Thread(target=run, args=(index, call), name=f"bridge-{index}", daemon=True).start()
    results: dict[int, T] = {}
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while len(results) < len(calls):
        left = LOOK_S if deadline is None else max(0.0, min(LOOK_S, deadline - time.monotonic()))
        try:
            index, result, error = done.get(timeout=left)
        except queue.Empty:
            if deadline is not None and time.monotonic() >= deadline:
                raise TransferError(f"No end after {timeout_s:g} s.") from None
            if (reason := why_stop()) is not None:
                raise TransferError(reason) from None
            continue
        if error is not None:
            raise error
        results[index] = result  # type: ignore[assignment]
    return [results[index] for index in range(len(calls))]

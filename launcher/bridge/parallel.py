"""The same thing for every replica at once; the first error counts and is not made to wait for the others."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def in_parallel(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Results in the order of the calls.

    The threads are daemons: a call that hangs until its own deadline keeps neither the caller nor the program.

    Raises:
        BaseException: what the first failing call raised.
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
    while len(results) < len(calls):
        index, result, error = done.get()
        if error is not None:
            raise error
        results[index] = result  # type: ignore[assignment]
    return [results[index] for index in range(len(calls))]

"""Calls at once, each in a thread: a replica that fails, hangs or is lost costs the others nothing."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from launcher.common.errors import LauncherError, TransferError

K = TypeVar("K")
T = TypeVar("T")

LOOK_S = 2.0
"""How often ``failure_reason`` is called for a replica while a call to it takes long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results(Generic[T]):
    """What came of calls to several replicas, by index of the replica: each is in one of the two."""

    values: dict[int, T] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    """Why a call failed, for people."""


def call_each(
    calls: Mapping[int, Sequence[Callable[[], T]]],
    timeout_s: float,
    failure_reason: Callable[[int], str | None] = lambda _index: None,
) -> Results[list[T]]:
    """Carries out all calls at once, each in a thread of its own; the values in the order of a replica's calls.

    The threads are daemons: a call that hangs, in a library that knows no deadlines, keeps neither the caller nor the
    program; it is left behind.

    Args:
        calls: by replica. The first of a replica's calls that raises a :class:`LauncherError` makes the replica fail;
            its other calls are not waited for.
        timeout_s: a replica whose calls have not returned by then has failed.
        failure_reason: called now and then for a replica while a call takes long; a reason makes the replica fail.

    Raises:
        BaseException: any other that a call raised.
    """
    done = _start({(i, n): call for i, several in calls.items() for n, call in enumerate(several)})
    values: dict[int, dict[int, T | None]] = {index: {} for index in calls}
    failures: dict[int, str] = {}
    deadline = time.monotonic() + timeout_s
    look_at = time.monotonic() + LOOK_S
    while waiting := [i for i, several in calls.items() if i not in failures and len(values[i]) < len(several)]:
        now = time.monotonic()
        if now >= deadline:
            return _results(values, failures | dict.fromkeys(waiting, f"No end after {timeout_s:g} s."))
        if now >= look_at:
            look_at = now + LOOK_S
            failures |= {index: reason for index in waiting if (reason := failure_reason(index)) is not None}
            continue
        try:
            (index, number), value, error = done.get(timeout=max(0.0, min(look_at, deadline) - now))
        except queue.Empty:
            continue
        if isinstance(error, LauncherError):
            failures.setdefault(index, str(error))
        elif error is not None:
            raise error
        else:
            values[index][number] = value
    return _results(values, failures)


def in_parallel(calls: Sequence[Callable[[], T]], *, timeout_s: float | None = None) -> list[T]:
    """Results in the order of the calls; the first error counts and does not wait for the other calls.

    Args:
        calls: each gets a thread of its own, as in :func:`call_each`.
        timeout_s: longest wait; None for any.

    Raises:
        BaseException: what the first failing call raised.
        TransferError: a call has not returned after ``timeout_s``; it is left behind.
    """
    done = _start(dict(enumerate(calls)))
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    results: dict[int, T | None] = {}
    while len(results) < len(calls):
        try:
            index, value, error = done.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise TransferError(f"No end after {timeout_s:g} s.") from None
        if error is not None:
            raise error
        results[index] = value
    return [results[index] for index in range(len(calls))]  # type: ignore[misc]


def _start(calls: Mapping[K, Callable[[], T]]) -> queue.SimpleQueue[tuple[K, T | None, BaseException | None]]:
    """Starts a thread for each call; where each puts its key, its value and its error when it has ended."""
    done: queue.SimpleQueue[tuple[K, T | None, BaseException | None]] = queue.SimpleQueue()

    def run(key: K, call: Callable[[], T]) -> None:
        try:
            done.put((key, call(), None))
        except BaseException as error:
            done.put((key, None, error))

    for key, call in calls.items():
        threading.Thread(target=run, args=(key, call), name=f"bridge-call-{key}", daemon=True).start()
    return done


def _results(values: Mapping[int, Mapping[int, T | None]], failures: dict[int, str]) -> Results[list[T]]:
    return Results(
        values={
            index: [found[number] for number in sorted(found)]  # type: ignore[misc]
            for index, found in values.items()
            if index not in failures
        },
        failures=failures,
    )

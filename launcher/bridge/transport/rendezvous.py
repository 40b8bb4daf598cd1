"""What several transports need to find and to know the other end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch import distributed as dist

from launcher.bridge.transport.base import Meeting, Pair
from launcher.common.errors import BridgeError, RendezvousTimeout, TransferError


@contextmanager
def at_store(meeting: Meeting, pair: Pair) -> Iterator[dist.Store]:
    """The trainer's store, for one pair alone.

    Raises:
        RendezvousTimeout: the store, or the other end, could not be reached in time.
    """
    if meeting.store is None:
        raise BridgeError("These wires need a store to meet at.")
    host, _, port = meeting.store.rpartition(":")
    timeout = timedelta(seconds=meeting.timeout_s)
    try:
        # A connection of its own: while one thread waits in a store, no other thread gets its turn there.
        store = dist.TCPStore(host, int(port), is_master=False, timeout=timeout, wait_for_workers=False)
        yield dist.PrefixStore(f"{meeting.group}/{pair}/", store)
    except (dist.DistError, RuntimeError) as error:
        raise RendezvousTimeout(
            f"Trainer rank {pair.sender} and worker {pair.receiver} did not meet within {meeting.timeout_s:g} s:"
            f" {first_line(error)}"
        ) from error


@contextmanager
def explained() -> Iterator[None]:
    """torch's errors as ours."""
    try:
        yield
    except RuntimeError as error:
        raise TransferError(f"failed: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Of its message; torch adds its stack."""
    return (str(error).splitlines() or [type(error).__name__])[0]

"""The engines as the control service knows them at this moment: which there are, and which may be asked."""

from __future__ import annotations

import time
from collections.abc import Callable

from launcher.common.errors import ControlError
from launcher.control.client import LONGEST_WAIT_S, ControlClient
from launcher.control.model import PoolMember
from launcher.control.protocol import PoolRequest


class Pool:
    """Asks the control service; each question is one small message."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client

    @classmethod
    def from_environment(cls) -> Pool:
        """The pool of the run that this process belongs to.

        Raises:
            ControlError: this process belongs to no run.
        """
        return cls(ControlClient.from_environment())

    def members(self) -> list[PoolMember]:
        """Every replica that was not dropped, in their order."""
        return list(self._client.call(PoolRequest()).members)

    def urls(self) -> list[str]:
        """Of the replicas that may be asked."""
        return [member.url for member in self.members() if member.serves and member.url is not None]

    def wait(self, is_enough: Callable[[list[PoolMember]], bool], *, timeout_s: float, what: str) -> list[PoolMember]:
        """The members, as soon as they are enough.

        Raises:
            ControlError: they are not after ``timeout_s``; the message says ``what`` was awaited.
        """
        deadline = time.monotonic() + timeout_s
        revision: int | None = None
        while True:
            wait_s = max(0.0, min(LONGEST_WAIT_S, deadline - time.monotonic()))
            reply = self._client.call(PoolRequest(revision=revision, wait_s=wait_s))
            revision, members = reply.revision, list(reply.members)
            if is_enough(members):
                return members
            if time.monotonic() >= deadline:
                states = ", ".join(f"replica {m.replica} {m.state}" for m in members) or "none is left"
                raise ControlError(f"Waited {timeout_s:g} s for {what}: {states}.")

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

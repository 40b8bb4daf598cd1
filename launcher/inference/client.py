"""What a trainer needs to know of the engines: which there are, which accept requests now, and their key."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable

from launcher.common.env import LAUNCHER_INFERENCE_API_KEY
from launcher.common.errors import ControlError, LauncherError
from launcher.control.client import LONGEST_WAIT_S, ControlClient
from launcher.control.model import PoolMember
from launcher.control.protocol import PoolRequest


def inference_urls() -> list[str]:
    """Base URLs of the engines that accept requests now: ``http://address:port``, without ``/v1``, by replica.

    An engine that is down, or that was restarted and has not got the newest weights yet, is not among them; it is when
    it is back. Costs one small message to node 0, so call it before each batch of requests.

    Raises:
        LauncherError: this process belongs to no run.
    """
    return _pool().urls()


def engines() -> dict[int, str]:
    """The same URLs, by the index of the replica.

    Raises:
        LauncherError: this process belongs to no run.
    """
    return {m.replica: m.url for m in _pool().members() if m.serves and m.url is not None}


def api_key() -> str:
    """Key for ``Authorization: Bearer`` of the engines' OpenAI API.

    Raises:
        LauncherError: this process belongs to no run.
    """
    value = os.environ.get(LAUNCHER_INFERENCE_API_KEY)
    if not value:
        raise LauncherError(
            f"`{LAUNCHER_INFERENCE_API_KEY}` is not set: this process is no trainer of a run. HINT: start the program"
            " through `launcher` (`trainer.command`), whose agent sets the variable."
        )
    return value


def wait_ready(timeout_s: float = 600.0) -> list[str]:
    """Waits until every engine that has not been given up is healthy; their URLs.

    Raises:
        ControlError: one is not, after ``timeout_s``.
    """
    members = _pool().wait(
        lambda members: bool(members) and all(member.is_ready for member in members),
        timeout_s=timeout_s,
        what="all engines to be ready",
    )
    return [member.url for member in members if member.url is not None]


@functools.cache
def _pool() -> Pool:
    return Pool.from_environment()


class Pool:
    """The pool by the control service; each call is one small RPC."""

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
        """Of the replicas that accept requests."""
        return [member.url for member in self.members() if member.serves and member.url is not None]

    def wait(self, is_enough: Callable[[list[PoolMember]], bool], *, timeout_s: float, what: str) -> list[PoolMember]:
        """The members, as soon as they are enough.

        Raises:
            ControlError: they are not after ``timeout_s``; the message names ``what`` was awaited.
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

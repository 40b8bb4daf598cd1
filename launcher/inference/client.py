"""What a trainer needs to know of the engines: where they are and which key they take."""

from __future__ import annotations

import functools
import os

from launcher.common.env import LAUNCHER_INFERENCE_API_KEY
from launcher.common.errors import LauncherError
from launcher.inference.pool import Pool


def inference_urls() -> list[str]:
    """Base URLs of the engines that may be asked now: ``http://address:port``, without ``/v1``, by replica.

    An engine that is down, or that was restarted and has not got the newest weights yet, is not among them; it is when
    it is back. Costs one small message to node 0, so ask as often as you send a batch of requests.

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

"""HTTP requests between the processes of a job: never through a proxy, with a deadline for the whole call.

A site's ``http_proxy`` must not see requests to a node of the job: it could not reach the node, and would learn the
keys that the requests carry. The user's own program keeps its variables.
"""

from __future__ import annotations

import atexit
import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

IDLE_S = 2.0
"""How long a connection is kept for the next request: less than the 5 s after which uvicorn closes one, so that no
request meets its closing."""


class HttpError(Exception):
    """There is no whole answer: the server could not be reached, ended the connection, or was too slow."""

    @property
    def is_refused(self) -> bool:
        """Whether nobody listens at the port."""
        cause: BaseException | None = self
        while cause is not None and not isinstance(cause, ConnectionRefusedError):
            cause = cause.__cause__ or cause.__context__
        return cause is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpReply:
    """An answer, whatever its status."""

    status: int
    body: bytes


def request(method: str, url: str, *, body: bytes | None = None, key: str | None = None, timeout_s: float) -> HttpReply:
    """One request. Connections are reused, and shared by all threads of the process.

    Args:
        method: ``GET`` or ``POST``.
        body: JSON; none if None.
        key: sent as ``Authorization: Bearer``.
        timeout_s: seconds from the call to the last byte of the answer.

    Raises:
        HttpError: there is no answer after ``timeout_s``, or none will come.
    """
    import httpx

    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    deadline = time.monotonic() + timeout_s
    try:
        # httpx's own timeout is per read: a server that trickles must not escape the deadline.
        with _client().stream(method, url, content=body, headers=headers, timeout=timeout_s) as reply:
            chunks = []
            for chunk in reply.iter_bytes():
                chunks.append(chunk)
                if time.monotonic() > deadline:
                    raise HttpError(f"the answer was not complete after {timeout_s:g} s")
            return HttpReply(status=reply.status_code, body=b"".join(chunks))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        # httpx leaves the text of a timeout empty.
        raise HttpError(f"{type(error).__name__}: {error}".rstrip(": ")) from error


@functools.cache
def _client() -> httpx.Client:
    import httpx

    limits = httpx.Limits(max_connections=None, keepalive_expiry=IDLE_S)
    client = httpx.Client(trust_env=False, limits=limits)
    atexit.register(client.close)
    return client

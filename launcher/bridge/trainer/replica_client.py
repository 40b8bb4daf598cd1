"""The trainer's HTTP requests to one replica: the bridge's routes on the engine's own port, each with a deadline."""

from __future__ import annotations

import json
from typing import Any

from launcher.bridge.trainer.discovery import ReplicaInfo
from launcher.common import http
from launcher.common.errors import TransferError


class ReplicaClient:
    """Calls the bridge routes of one engine.

    Args:
        info: of the replica; it has a URL.
        key: the run's bridge key.
        restart_count: how often the trainers were restarted; an engine refuses those older than it has seen.
        adapter: name of the adapter that all calls are about; None for the model's weights.
    """

    def __init__(
        self,
        info: ReplicaInfo,
        key: str,
        *,
        restart_count: int = 0,
        adapter: str | None = None,
    ) -> None:
        self.info = info
        self.index = info.index
        self.url = info.url
        self._key = key
        self._about = (
            {"incarnation": restart_count} if adapter is None else {"incarnation": restart_count, "adapter": adapter}
        )

    def call(self, route: str, body: dict[str, Any] | None = None, *, timeout_s: float) -> dict[str, Any]:
        """POST with a body, GET without; the JSON answer.

        Raises:
            TransferError: no answer in time, or a refusal; the message holds the engine's own words.
        """
        content = None if body is None else json.dumps({**body, **self._about}).encode()
        try:
            reply = http.request(
                "GET" if content is None else "POST",
                f"{self.url}/bridge/{route}",
                body=content,
                key=self._key,
                timeout_s=timeout_s,
            )
            if reply.status == 200:
                answer: dict[str, Any] = json.loads(reply.body)
                return answer
        except (http.HttpError, ValueError) as error:
            raise TransferError(
                f"Replica {self.index} at {self.url} did not answer `{route}` within {timeout_s:g} s: {error}"
            ) from error
        raise TransferError(f"Replica {self.index} at {self.url} refused `{route}`: {_reason(reply)}")


def _reason(reply: http.HttpReply) -> str:
    text = reply.body.decode(errors="replace")
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {reply.status} {text[:200]}"

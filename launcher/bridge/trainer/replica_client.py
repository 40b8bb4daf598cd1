"""The trainer's HTTP requests to one replica: the bridge's routes on the engine's own port, each with a deadline."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TypeVar, cast

from launcher.bridge.protocol import BridgeRequest
from launcher.bridge.trainer.discovery import ReplicaInfo
from launcher.common import http
from launcher.common.codec import CodecError, from_json, to_json
from launcher.common.errors import TransferError

R = TypeVar("R")


class ReplicaClient:
    """Sends the bridge's requests to one start of one replica. Any thread may call it.

    Args:
        info: of the replica; it has a URL.
        key: the bridge key of the engines.
        restart_count: how often the trainers were restarted; an engine refuses those older than it has seen.
        adapter: name of the adapter that all requests are about; None for the model's weights.
    """

    def __init__(self, info: ReplicaInfo, key: str, *, restart_count: int = 0, adapter: str | None = None) -> None:
        self.info = info
        self._key = key
        self._restart_count = restart_count
        self._adapter = adapter

    @property
    def index(self) -> int:
        """Of the replica."""
        return self.info.index

    def call(self, request: BridgeRequest[R], *, timeout_s: float) -> R:
        """One request; the engine's reply.

        Raises:
            TransferError: no reply after ``timeout_s``, or a refusal; the message holds the engine's own words.
        """
        about, name, url = f"Replica {self.index} at {self.info.url}", request.operation, self.info.url
        request = replace(request, restart_count=self._restart_count, adapter=self._adapter)
        body = to_json(request) if request.method == "POST" else None
        try:
            reply = http.request(request.method, f"{url}/bridge/{name}", body=body, key=self._key, timeout_s=timeout_s)
            if reply.status == 200:
                return cast("R", from_json(reply.body, request.reply))
        except (http.HttpError, CodecError) as error:
            raise TransferError(f"{about} did not answer `{name}` within {timeout_s:g} s: {error}") from error
        raise TransferError(f"{about} refused `{name}`: {_reason(reply)}")


def _reason(reply: http.HttpReply) -> str:
    text = reply.body.decode(errors="replace")
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {reply.status} {text[:200]}"

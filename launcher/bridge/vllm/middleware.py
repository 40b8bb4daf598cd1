"""The bridge's routes on an engine's own port, added with ``--middleware``; every other route needs a key, too.

====================  =========================================================================================
GET  /bridge/info     version, state, URL-independent facts about the engine
POST /bridge/bind     learn how the trainer's tensors map into the workers'; their needs
POST /bridge/connect  agree on the plan, join the trainer's group
POST /bridge/prepare  start receiving ``version`` beside the live weights
POST /bridge/vote     wait until every worker has received ``version``; the digests of what arrived
POST /bridge/commit   pause, write, drop the prefix cache, stamp ``version``, resume
POST /bridge/abort    forget what was received
POST /bridge/pause, /bridge/resume, GET /bridge/is_paused
POST /bridge/disconnect
====================  =========================================================================================

All of them take the run's bridge key as ``Authorization: Bearer``. vLLM's own development endpoints are not enabled:
they would open the engine to everybody who reaches the port. Answers carry ``x-weight-version``, and with
``x-weight-versions`` which version produced which of their tokens (:mod:`launcher.bridge.vllm.spans`).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from launcher.bridge.vllm import spans
from launcher.bridge.vllm.engine import BridgeEngine, Refused
from launcher.control.keys import api_key, bridge_key, same, token_from_environment

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/health", "/ping"})
LARGEST_BODY = 256 << 20


class BridgeMiddleware:
    """ASGI middleware; vLLM constructs it with the application that it wraps."""

    def __init__(self, app: App) -> None:
        self._app = app
        token = token_from_environment()
        self._api_key = api_key(token)
        self._bridge_key = bridge_key(token)
        self._engine = BridgeEngine(awaits_weights=os.environ.get("LAUNCHER_AWAITS_WEIGHTS") == "1")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves the bridge's routes, checks keys on the others."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"].startswith("/bridge/"):
            await self._serve(scope, receive, send)
        elif scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
        elif not same(_bearer(scope), self._api_key):
            await _reply(send, 401, {"error": "this engine needs the run's API key"})
        elif self._engine.awaits_weights:
            await _reply(send, 503, {"error": "this engine was restarted and waits for the trainer's weights"})
        else:
            await self._pass_on(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not same(_bearer(scope), self._bridge_key):
            await _reply(send, 401, {"error": "the bridge needs the run's bridge key"})
            return
        route = scope["path"].removeprefix("/bridge/")
        try:
            body = await _body(receive)
            answer = await self._engine.handle(scope["app"].state.engine_client, scope["method"], route, body)
            await _reply(send, 200, answer)
        except Refused as refused:
            logger.warning("bridge: refused %s: %s", route, refused)
            await _reply(send, refused.status, {"error": str(refused)})
        except (KeyError, TypeError, ValueError) as error:
            await _reply(send, 400, {"error": f"bad request: {error!r}"})

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ordinary request; its answer says which versions it comes from."""
        request_id = _header(scope, spans.REQUEST_ID) or spans.new_request_id()
        # vLLM names the request after this header, and so it is found again when a version is committed.
        headers = [*(item for item in scope["headers"] if item[0] != spans.REQUEST_ID)]
        headers.append((spans.REQUEST_ID, request_id.encode("latin-1")))
        self._engine.spans.begin(request_id, self._engine.version)
        try:
            await self._app({**scope, "headers": headers}, receive, self._stamped(send, request_id))
        finally:
            self._engine.spans.end(request_id)

    def _stamped(self, send: Send, request_id: str) -> Send:
        """Adds versions to an answer: to its head those up to its first byte, to a stream's end those up to there."""
        is_stream = False

        async def stamp(message: MutableMapping[str, Any]) -> None:
            nonlocal is_stream
            if message["type"] == "http.response.start" and self._engine.version is not None:
                headers = list(message.get("headers", []))
                is_stream = any(
                    name.lower() == b"content-type" and value.startswith(b"text/event-stream")
                    for name, value in headers
                )
                headers.append((b"x-weight-version", str(self._engine.version).encode()))
                headers.append((spans.HEADER, self._engine.spans.text(request_id).encode()))
                message["headers"] = headers
            elif message["type"] == "http.response.body" and is_stream and not message.get("more_body"):
                # A comment, which clients of server-sent events pass over.
                last = f": {spans.HEADER.decode()} {self._engine.spans.text(request_id)}\n\n".encode()
                message["body"] = message.get("body", b"") + last
            await send(message)

        return stamp


def _bearer(scope: Scope) -> str:
    return _header(scope, b"authorization").removeprefix("Bearer ")


def _header(scope: Scope, wanted: bytes) -> str:
    return next((str(value.decode("latin-1")) for name, value in scope["headers"] if name == wanted), "")


async def _body(receive: Receive) -> dict[str, Any]:
    chunks = b""
    while True:
        message = await receive()
        chunks += message.get("body", b"")
        if len(chunks) > LARGEST_BODY:
            raise ValueError(f"the body is larger than {LARGEST_BODY} bytes")
        if not message.get("more_body"):
            break
    body = json.loads(chunks) if chunks else {}
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")
    return body


async def _reply(send: Send, status: int, answer: dict[str, Any]) -> None:
    body = json.dumps(answer).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

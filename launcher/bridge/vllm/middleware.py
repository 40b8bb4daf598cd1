"""The bridge's routes on an engine's own port, added with ``--middleware``; every other route needs a key, too.

The routes are the operations of :mod:`launcher.bridge.protocol`, which take the run's bridge key as ``Authorization:
Bearer``. vLLM's own development endpoints are not enabled: they would open the engine to everybody who reaches the
port. Answers carry ``x-weight-version``, and with ``x-weight-versions`` which version produced which of their tokens
(:mod:`launcher.bridge.engine.version_spans`). Those of an adapter that the bridge brought count its versions, and name
it in ``x-weight-adapter``.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote

from launcher.bridge import protocol
from launcher.bridge.engine import version_spans as spans
from launcher.bridge.engine.state_machine import Refused, ServedModel, UpdateStateMachine
from launcher.bridge.vllm.compat import VllmEngine, warn_if_untested
from launcher.common.codec import from_json, to_json
from launcher.common.keys import api_key, bridge_key, is_same, token_from_environment

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
        warn_if_untested()
        self._updates = UpdateStateMachine(awaits_weights=os.environ.get("LAUNCHER_AWAITS_WEIGHTS") == "1")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves the bridge's routes, checks keys on the others."""
        if scope["type"] == "lifespan" and (reason := _engine(scope).refusal()):
            logger.error("bridge: %s", reason)
            await receive()
            await send({"type": "lifespan.startup.failed", "message": reason})
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"].startswith("/bridge/"):
            await self._serve(scope, receive, send)
        elif scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
        elif not is_same(_bearer(scope), self._api_key):
            await _reply(send, 401, {"error": "this engine needs the run's API key"})
        elif self._updates.awaits_weights:
            await _reply(send, 503, {"error": "this engine was restarted and waits for the trainer's weights"})
        else:
            await self._pass_on(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_same(_bearer(scope), self._bridge_key):
            await _reply(send, 401, {"error": "the bridge needs the run's bridge key"})
            return
        route = scope["path"].removeprefix("/bridge/")
        try:
            request = _request(scope["method"], route, await _content(receive))
            engine = _engine(scope)
            if reason := engine.refusal():
                raise Refused(409, reason)
            await _reply(send, 200, await self._updates.handle(engine, request))
        except Refused as refused:
            logger.warning("bridge: refused %s: %s", route, refused)
            await _reply(send, refused.status, {"error": str(refused)})
        except (KeyError, TypeError, ValueError) as error:
            await _reply(send, 400, {"error": f"bad request: {error}"})

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ordinary request; its answer says which versions it comes from."""
        served = self._updates.weights
        if self._updates.adapters and scope["method"] == "POST":
            content = await _content(receive)
            served = self._updates.adapters.get(_model(content), served)
            receive = _again(content, receive)
        request_id = _header(scope, spans.REQUEST_ID) or spans.new_request_id()
        # vLLM names the request after this header, and so it is found again when a version is committed.
        headers = [*(item for item in scope["headers"] if item[0] != spans.REQUEST_ID)]
        headers.append((spans.REQUEST_ID, request_id.encode("latin-1")))
        served.spans.begin(request_id, served.version)
        try:
            await self._app({**scope, "headers": headers}, receive, _stamped(send, served, request_id))
        finally:
            served.spans.end(request_id)


def _stamped(send: Send, served: ServedModel, request_id: str) -> Send:
    """Adds versions to an answer: to its head those up to its first byte, to a stream's end those up to there."""
    is_stream = False

    async def stamp(message: MutableMapping[str, Any]) -> None:
        nonlocal is_stream
        if message["type"] == "http.response.start" and served.version is not None:
            headers = list(message.get("headers", []))
            is_stream = any(
                name.lower() == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers
            )
            headers.append((b"x-weight-version", str(served.version).encode()))
            headers.append((spans.HEADER, served.spans.text(request_id).encode()))
            if served.adapter is not None:
                headers.append((b"x-weight-adapter", quote(served.adapter).encode()))
            message["headers"] = headers
        elif message["type"] == "http.response.body" and is_stream and not message.get("more_body"):
            # A comment, which clients of server-sent events pass over.
            last = f": {spans.HEADER.decode()} {served.spans.text(request_id)}\n\n".encode()
            message["body"] = message.get("body", b"") + last
        await send(message)

    return stamp


def _engine(scope: Scope) -> VllmEngine:
    state = scope["app"].state
    return VllmEngine(getattr(state, "engine_client", None), getattr(state, "openai_serving_models", None))


def _bearer(scope: Scope) -> str:
    scheme, _, key = _header(scope, b"authorization").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _header(scope: Scope, wanted: bytes) -> str:
    return next((str(value.decode("latin-1")) for name, value in scope["headers"] if name == wanted), "")


async def _content(receive: Receive) -> bytes:
    chunks = b""
    while True:
        message = await receive()
        chunks += message.get("body", b"")
        if len(chunks) > LARGEST_BODY:
            raise ValueError(f"the body is larger than {LARGEST_BODY} bytes")
        if not message.get("more_body"):
            return bytes(chunks)


def _again(content: bytes, receive: Receive) -> Receive:
    """Gives a body that has been read once more, and then what comes after it."""
    waiting = [content]

    async def give() -> MutableMapping[str, Any]:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return give


def _model(content: bytes) -> str:
    """The ``model`` of an OpenAI request; empty if it is none, which is for vLLM to say."""
    try:
        return str(json.loads(content)["model"])
    except (ValueError, KeyError, TypeError):
        return ""


def _request(method: str, name: str, content: bytes) -> protocol.BridgeRequest[Any]:
    """The request of a route and its body.

    Raises:
        Refused: there is no such route.
        ValueError: the body is not the request's.
    """
    kind = protocol.FROM_TRAINER.get(name)
    if kind is None or kind.method != method:
        raise Refused(404, f"no such route: {method} /bridge/{name}")
    return from_json(content or b"{}", kind)


async def _reply(send: Send, status: int, answer: Any) -> None:
    body = to_json(answer)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

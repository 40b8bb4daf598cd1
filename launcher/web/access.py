"""Access control of the page: on loopback by the host name of the request, elsewhere by a token."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "launcher-page"
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
HEADERS = {
    # Nothing on the page comes from elsewhere, and nobody else may put the page into a frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def new_token() -> str:
    """A fresh token for an address line."""
    return secrets.token_urlsafe(24)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Access:
    """Lets requests through to an application, or answers them itself.

    Args:
        token: required if there is one: first as ``?token=`` in the address, from then on as a cookie.
        is_local: the server listens on loopback only. Then the name in the address must be this machine's: a page of
            somebody else, whose name was made to point to 127.0.0.1, may not read this one (DNS rebinding).
    """

    def __init__(self, app: App, *, token: str | None, is_local: bool) -> None:
        self._app = app
        self._token = token
        self._is_local = is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    *((k.lower().encode(), v.encode()) for k, v in HEADERS.items()),
                ]
            await send(message)

        app = self._answer(Request(scope)) or self._app
        await app(scope, receive, send_with_headers)

    def _answer(self, request: Request) -> App | None:
        """The answer to who may not see the page, or shows the token for the first time; None lets through."""
        if self._is_local and _name(request.headers.get("host", "")) not in LOOPBACK_NAMES:
            return PlainTextResponse("This page is served to 127.0.0.1 and localhost only.\n", 403)
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("Nothing can be changed here.\n", 405)
        if self._token is None or self._is_right(request.cookies.get(COOKIE, "")):
            return None
        if self._is_right(request.query_params.get("token", "")):
            # To an address without the token, which then is in no history and no bookmark.
            response = RedirectResponse(request.url.path, 303)
            response.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
            return response
        return PlainTextResponse("Open the address that `launcher ui` printed: it holds the token.\n", 401)

    def _is_right(self, given: str) -> bool:
        return self._token is not None and hmac.compare_digest(given.encode(), self._token.encode())


def _name(host: str) -> str:
    """The name in a ``Host`` header, without the port."""
    head, colon, port = host.rpartition(":")
    return (head if colon and port.isdecimal() else host).lower()

"""Who may see the page: on loopback whoever asks for this machine by its name, elsewhere whoever has the token."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

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
        token: asked for, if there is one: once as ``?token=`` in the address, from then on as a cookie.
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

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        app = self._answer(scope, headers) or self._app
        await app(scope, receive, send_with_headers)

    def _answer(self, scope: Scope, headers: dict[str, str]) -> App | None:
        """The answer to who may not see the page, or shows the token for the first time; None lets through."""
        if self._is_local and _name(headers.get("host", "")) not in LOOPBACK_NAMES:
            return PlainTextResponse("This page is served to 127.0.0.1 and localhost only.\n", 403)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("Nothing can be changed here.\n", 405)
        if self._token is None or self._is_right(_cookie(headers.get("cookie", ""))):
            return None
        if self._is_right(parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]):
            # To an address without the token, which then is in no history and no bookmark.
            response = RedirectResponse(scope["path"], 303)
            response.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
            return response
        return PlainTextResponse("Open the address that `launcher ui` printed: it holds the token.\n", 401)

    def _is_right(self, given: str) -> bool:
        return self._token is not None and hmac.compare_digest(given.encode(), self._token.encode())


def _name(host: str) -> str:
    """The name in a ``Host`` header, without the port."""
    head, colon, port = host.rpartition(":")
    return (head if colon and port.isdecimal() else host).lower()


def _cookie(header: str) -> str:
    for part in header.split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value.strip('"')
    return ""

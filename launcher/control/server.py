"""The control service: JSON lines over TCP, one connection per client, opened by a challenge.

Wire protocol, one JSON object a line in both directions::

    server -> {"nonce": hex}
    client -> {"answer": HMAC(token, nonce)}          wrong: the connection is closed
    client -> {"op": name, ...}
    server -> {"ok": true, ...} | {"ok": false, "error": text}

Operations: ``hello`` ``preflight`` ``beat`` ``done`` ``gone`` ``fail`` ``cancel`` ``put`` ``get`` ``event``.
Every answer holds the time here, by which others set their clocks.
``beat`` and ``get`` take ``wait_s``: the answer comes as soon as something changed, at the latest then, so that
nobody polls quickly and everybody learns quickly.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from launcher.control.keys import answer, same
from launcher.control.state import JobState
from launcher.preflight.model import report_from_json

logger = logging.getLogger(__name__)

LINE_LIMIT = 1 << 20
LEASE_CHECK_S = 1.0
HANDSHAKE_TIMEOUT_S = 10.0


class Bell:
    """Wakes everybody who waits for one kind of news, each time it rings. For one event loop."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def ring(self) -> None:
        """There is news."""
        self._next.set()
        self._next = asyncio.Event()

    async def wait_until(self, predicate: Callable[[], bool], timeout_s: float) -> None:
        """Returns as soon as the predicate holds, or after ``timeout_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not predicate():
                    await self._next.wait()


class ControlServer:
    """Serves a :class:`JobState` from a thread of its own.

    Args:
        state: what is served; touched by the service's thread only, from now on.
        sock: a bound socket, held by the caller until now.
        token: the run's token.
    """

    def __init__(self, state: JobState, sock: socket.socket, token: str) -> None:
        self._state = state
        self._sock = sock
        self._token = token
        self._loop = asyncio.new_event_loop()
        # Two of them: thousands of agents wait for the phase, and would all wake at every value that one publishes.
        self._phase_news = Bell()
        self._value_news = Bell()
        self._stop = asyncio.Event()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def start(self) -> None:
        """Returns once connections are accepted."""
        self._thread.start()
        self._up.wait()

    def close(self) -> None:
        """Ends the service and its thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            try:
                self._loop.run_until_complete(self._serve())
            finally:
                self._up.set()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._client, sock=self._sock, limit=LINE_LIMIT, backlog=4096)
        leases = asyncio.create_task(self._watch_leases())
        self._up.set()
        await self._stop.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(leases, *tasks, return_exceptions=True)

    async def _watch_leases(self) -> None:
        while True:
            await asyncio.sleep(LEASE_CHECK_S)
            self._change(self._state.check_leases)

    def _change(self, action: Callable[..., None], *arguments: Any) -> None:
        before = self._state.phase
        action(*arguments)
        if self._state.phase is not before:
            self._phase_news.ring()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            nonce = secrets.token_hex(16)
            writer.write(_line({"nonce": nonce}))
            first = json.loads(await asyncio.wait_for(reader.readline(), HANDSHAKE_TIMEOUT_S))
            if not same(str(first.get("answer", "")), answer(self._token, nonce)):
                writer.write(_line({"ok": False, "error": "wrong token"}))
                return
            writer.write(_line({"ok": True}))
            while line := await reader.readline():
                writer.write(_line(await self._answer(line)))
                await writer.drain()
        except (
            TimeoutError,
            ConnectionError,
            ValueError,
            AttributeError,
            RecursionError,
            asyncio.CancelledError,
        ) as error:
            # Anything may connect to a port; what does not speak the protocol is dropped, not answered.
            logger.debug("control connection dropped: %r", error)
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            return {"ok": True, **await self._handle(request["op"], request)}
        except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
            return {"ok": False, "error": f"bad request: {error!r}"}

    async def _handle(self, op: str, request: dict[str, Any]) -> dict[str, Any]:
        state = self._state
        values = None
        if op == "hello":
            self._change(state.hello, int(request["node_rank"]), str(request["hostname"]), str(request["address"]))
        elif op == "preflight":
            self._change(state.preflight, report_from_json(request["report"]))
        elif op == "beat":
            state.beat(int(request["node_rank"]))
            known = request.get("phase")
            await self._phase_news.wait_until(lambda: state.phase != known, float(request.get("wait_s", 0)))
        elif op == "done":
            self._change(state.node_done, int(request["node_rank"]))
        elif op == "gone":
            self._change(state.node_gone, int(request["node_rank"]))
        elif op == "fail":
            self._change(state.fail, dict(request["failure"]))
        elif op == "cancel":
            self._change(state.cancel, str(request["reason"]))
        elif op == "put":
            state.put(str(request["key"]), request["value"])
            self._value_news.ring()
        elif op == "get":
            keys = [str(key) for key in request["keys"]]
            wait_s = float(request.get("wait_s", 0))
            await self._value_news.wait_until(lambda: all(key in state.values for key in keys), wait_s)
            values = {key: state.values[key] for key in keys if key in state.values}
        elif op == "event":
            state.emit(str(request["event"]), **dict(request["fields"]))
        else:
            raise ValueError(f"unknown operation {op!r}")
        reply = {
            "phase": state.phase.value,
            "failure": state.failure,
            "everybody_gone": state.everybody_gone,
            "time": time.time(),
        }
        return reply if values is None else {**reply, "values": values}


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"

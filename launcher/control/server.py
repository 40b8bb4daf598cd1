"""The control service: JSON lines over TCP, one connection per client, opened by a challenge.

Wire protocol, one JSON object a line in both directions::

    server -> {"nonce": hex}
    client -> {"answer": HMAC(token, nonce)}          wrong: the connection is closed
    client -> {"op": name, ...}
    server -> {"ok": true, ...} | {"ok": false, "error": text}

Operations: ``hello`` ``beat`` ``done`` ``gone`` ``fail`` ``cancel`` ``put`` ``get`` ``event``.
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
from typing import Any

from launcher.control.keys import answer, same
from launcher.control.state import JobState

logger = logging.getLogger(__name__)

LINE_LIMIT = 1 << 20
LEASE_CHECK_S = 1.0


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
        self._changed: asyncio.Condition | None = None
        self._stop: asyncio.Event | None = None
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def start(self) -> None:
        """Returns once connections are accepted."""
        self._thread.start()
        self._up.wait()

    def close(self) -> None:
        """Ends the service and its thread."""
        if self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._changed = asyncio.Condition()
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._client, sock=self._sock, limit=LINE_LIMIT, backlog=4096)
        leases = asyncio.create_task(self._watch_leases())
        self._up.set()
        await self._stop.wait()
        leases.cancel()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _watch_leases(self) -> None:
        while True:
            await asyncio.sleep(LEASE_CHECK_S)
            await self._change(self._state.check_leases)

    async def _change(self, action: Any, *args: Any) -> None:
        assert self._changed is not None
        async with self._changed:
            action(*args)
            self._changed.notify_all()

    async def _until(self, predicate: Any, wait_s: float) -> None:
        """Waits until the predicate holds, at most ``wait_s``."""
        assert self._changed is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(predicate)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            nonce = secrets.token_hex(16)
            writer.write(_line({"nonce": nonce}))
            first = json.loads(await asyncio.wait_for(reader.readline(), timeout=10))
            if not same(str(first.get("answer", "")), answer(self._token, nonce)):
                writer.write(_line({"ok": False, "error": "wrong token"}))
                return
            writer.write(_line({"ok": True}))
            while line := await reader.readline():
                writer.write(_line(await self._answer(line)))
                await writer.drain()
        except (TimeoutError, ConnectionError, ValueError, AttributeError, asyncio.CancelledError) as error:
            # Anything may connect to a port; what does not speak the protocol is dropped, not answered.
            logger.debug("control connection dropped: %r", error)
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            return {"ok": True, **await self._handle(request["op"], request)}
        except (KeyError, TypeError, ValueError, IndexError) as error:
            return {"ok": False, "error": f"bad request: {error!r}"}

    async def _handle(self, op: str, request: dict[str, Any]) -> dict[str, Any]:
        state = self._state
        values = None
        if op == "hello":
            await self._change(state.hello, int(request["node_rank"]), request["hostname"], request["address"])
        elif op == "beat":
            state.beat(int(request["node_rank"]))
            known = request.get("phase")
            await self._until(lambda: state.phase != known, float(request.get("wait_s", 0)))
        elif op == "done":
            await self._change(state.node_done, int(request["node_rank"]))
        elif op == "gone":
            await self._change(state.node_gone, int(request["node_rank"]))
        elif op == "fail":
            await self._change(state.fail, dict(request["failure"]))
        elif op == "cancel":
            await self._change(state.cancel, str(request["reason"]))
        elif op == "put":
            await self._change(state.values.__setitem__, str(request["key"]), request["value"])
        elif op == "get":
            keys = [str(key) for key in request["keys"]]
            await self._until(lambda: all(key in state.values for key in keys), float(request.get("wait_s", 0)))
            values = {key: state.values[key] for key in keys if key in state.values}
        elif op == "event":
            state.emit(str(request["event"]), **dict(request["fields"]))
        else:
            raise ValueError(f"unknown operation {op!r}")
        reply = {"phase": state.phase.value, "failure": state.failure, "everybody_gone": state.everybody_gone}
        return reply if values is None else {**reply, "values": values}


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"

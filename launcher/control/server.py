"""The control service: JSON lines over TCP, one connection per client, opened by a challenge.

Wire protocol, one JSON object a line in both directions::

    server -> {"nonce": hex}
    client -> {"answer": HMAC(token, nonce)}          wrong: the connection is closed
    client -> {"op": name, ...}
    server -> {"ok": true, ...} | {"ok": false, "error": text}

Operations of agents: ``hello`` ``preflight`` ``beat`` ``master`` ``ready`` ``ended`` ``done`` ``gone`` ``lost``
``fail``; of trainers: ``pool`` ``published``; of everybody: ``signal`` ``stop`` ``cancel`` ``put`` ``get`` ``event``.
Every answer holds the time here, by which others set their clocks.
``beat``, ``get`` and ``pool`` take ``wait_s``: the answer comes as soon as something changed, at the latest then, so
that nobody polls quickly and everybody learns quickly. The answer to ``beat`` holds the node's ``orders`` if they are
not those that it knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from launcher.common.challenge import is_same, new_nonce
from launcher.common.keys import control_proof
from launcher.control.state import JobState
from launcher.events.serialize import make_event
from launcher.preflight.model import report_from_json

logger = logging.getLogger(__name__)

LINE_LIMIT = 1 << 20
TICK_S = 0.5
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
        # Thousands of agents wait for orders; each has a bell of its own, or all would wake at every change for one.
        self._order_news: defaultdict[int, Bell] = defaultdict(Bell)
        self._value_news = Bell()
        self._pool_news = Bell()
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
        clock = asyncio.create_task(self._tick())
        self._up.set()
        await self._stop.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(clock, *tasks, return_exceptions=True)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._change(self._state.tick)

    def _change(self, action: Callable[..., None], *arguments: Any) -> None:
        state = self._state
        phase, pool = state.phase, state.replicas.changes
        action(*arguments)
        touched, state.touched = state.touched, set()
        for node in self._order_news if state.phase is not phase else touched:
            self._order_news[node].ring()
        if state.replicas.changes != pool:
            self._pool_news.ring()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            nonce = new_nonce()
            writer.write(_line({"nonce": nonce}))
            first = json.loads(await asyncio.wait_for(reader.readline(), HANDSHAKE_TIMEOUT_S))
            if not is_same(str(first.get("answer", "")), control_proof(self._token, nonce)):
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
        more: dict[str, Any] = {}
        if op == "hello":
            self._change(state.hello, int(request["node_rank"]), str(request["hostname"]), str(request["address"]))
        elif op == "preflight":
            self._change(state.preflight, report_from_json(request["report"]))
        elif op == "beat":
            more = await self._beat(request)
        elif op == "get":
            keys = [str(key) for key in request["keys"]]
            wait_s = float(request.get("wait_s", 0))
            await self._value_news.wait_until(lambda: all(key in state.values for key in keys), wait_s)
            more = {"values": {key: state.values[key] for key in keys if key in state.values}}
        elif op == "pool":
            known, wait_s = request.get("changes"), float(request.get("wait_s", 0))
            await self._pool_news.wait_until(lambda: state.replicas.changes != known, wait_s)
            more = {"changes": state.replicas.changes, "replicas": state.replicas.pool()}
        elif op == "put":
            self._change(state.put, str(request["key"]), request["value"])
            self._value_news.ring()
        elif op == "event":
            state.emit(make_event(str(request["event"]), dict(request["fields"])))
        else:
            self._change(self._report(op, request))
        return {
            "phase": state.phase.value,
            "failure": state.failure,
            "stopping": state.stopping.reason,
            "everybody_gone": state.everybody_gone,
            "time": time.time(),
            **more,
        }

    async def _beat(self, request: dict[str, Any]) -> dict[str, Any]:
        state, node = self._state, int(request["node_rank"])
        state.beat(node)
        phase, revision = request.get("phase"), request.get("revision")

        def has_orders() -> bool:
            return revision is not None and state.revision(node) != revision

        await self._order_news[node].wait_until(
            lambda: state.phase != phase or has_orders(), float(request.get("wait_s", 0))
        )
        return {"orders": state.orders(node).to_json()} if has_orders() else {}

    def _report(self, op: str, request: dict[str, Any]) -> Callable[[], None]:
        """What somebody tells, as the change of state that it is."""
        state = self._state
        reports: dict[str, Callable[[], None]] = {
            "master": lambda: state.master(
                int(request["replica"]), int(request["generation"]), str(request["address"])
            ),
            "ready": lambda: state.engine_ready(
                int(request["replica"]), int(request["generation"]), str(request["url"]), float(request["seconds"])
            ),
            "ended": lambda: state.ended(
                int(request["node_rank"]),
                str(request["role"]),
                int(request["rank"]),
                int(request["start"]),
                request["exit_code"],
                dict(request["failure"]),
            ),
            "published": lambda: state.published(
                int(request["incarnation"]),
                int(request["version"]),
                {int(index): int(generation) for index, generation in dict(request["replicas"]).items()},
                dict(request["fields"]),
            ),
            "done": lambda: state.node_done(int(request["node_rank"]), int(request["incarnation"])),
            "gone": lambda: state.node_gone(int(request["node_rank"])),
            "lost": lambda: state.node_lost(int(request["node_rank"]), dict(request["failure"])),
            "fail": lambda: state.fail(dict(request["failure"])),
            "signal": lambda: state.signalled(str(request["name"])),
            "stop": lambda: state.stop(str(request["reason"])),
            "cancel": lambda: state.cancel(str(request["reason"])),
        }
        if op not in reports:
            raise ValueError(f"unknown operation {op!r}")
        return reports[op]


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"

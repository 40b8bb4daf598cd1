"""The control service on node 0: JSON lines over TCP, one connection per client. See :mod:`launcher.control.wire`.

The server is a loop around :func:`launcher.control.transitions.apply`: a request or a tick of the clock is an event,
the event changes the state, and the effects are carried out. Heartbeats and other requests that wait are answered as
soon as an effect notifies them, so clients poll rarely.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from launcher.common.codec import from_json, to_json
from launcher.common.keys import control_proof, is_same, new_nonce
from launcher.control import effects, protocol
from launcher.control.preflight_report import PreflightReport, PreflightResult
from launcher.control.state import ControlState
from launcher.control.transitions import ControlEvent, Tick, apply
from launcher.control.views import all_nodes_left, assignment, pool
from launcher.control.wire import Accepted, Challenge, ChallengeAnswer, Refusal, decode_request
from launcher.events.schema import Event

logger = logging.getLogger(__name__)

LINE_LIMIT = 1 << 20
TICK_S = 0.5
HANDSHAKE_TIMEOUT_S = 10.0


class Condition:
    """A condition variable of one event loop, without a lock."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def notify_all(self) -> None:
        """Wakes all that wait."""
        self._next.set()
        self._next = asyncio.Event()

    async def wait_for(self, predicate: Callable[[], bool], timeout_s: float) -> None:
        """Returns as soon as the predicate holds, or after ``timeout_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not predicate():
                    await self._next.wait()


class ControlServer:
    """Serves a run's state from a thread of its own.

    Args:
        state: only the server's thread touches it, from now on.
        sock: a bound socket.
        token: the run's token.
        log: called with each event of the run's log, in order.
        compare: compares the preflight reports of all nodes; needed if the settings have a preflight.
        on_signal: called with the name of a signal that a node received.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        state: ControlState,
        sock: socket.socket,
        token: str,
        *,
        log: Callable[[Event], None],
        compare: Callable[[Sequence[PreflightReport]], PreflightResult] | None = None,
        on_signal: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._sock = sock
        self._token = token
        self._log = log
        self._compare = compare
        self._on_signal = on_signal
        self._clock = clock
        self._loop = asyncio.new_event_loop()
        # Thousands of agents wait for their assignments; each has a condition of its own, or all would wake for one.
        self._nodes_changed: defaultdict[int, Condition] = defaultdict(Condition)
        self._values_changed = Condition()
        self._pool_changed = Condition()
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
            self._apply(Tick())

    def _apply(self, event: ControlEvent) -> None:
        events = [event]
        while events:
            for effect in apply(self._state, events.pop(), self._clock()):
                match effect:
                    case effects.LogEvent():
                        self._log(replace(effect.event, time=time.time()))
                    case effects.NotifyNodes():
                        for node in effect.node_ranks:
                            self._nodes_changed[node].notify_all()
                    case effects.Notify.ALL_NODES:
                        for condition in self._nodes_changed.values():
                            condition.notify_all()
                    case effects.Notify.VALUES:
                        self._values_changed.notify_all()
                    case effects.Notify.POOL:
                        self._pool_changed.notify_all()
                    case effects.ForwardSignal():
                        if self._on_signal is not None:
                            self._on_signal(effect.name)
                    case effects.ComparePreflightReports():
                        assert self._compare is not None
                        events.append(self._compare(effect.reports))

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            nonce = new_nonce()
            writer.write(_line(Challenge(nonce=nonce)))
            first = await asyncio.wait_for(reader.readline(), HANDSHAKE_TIMEOUT_S)
            if not is_same(from_json(first, ChallengeAnswer).answer, control_proof(self._token, nonce)):
                writer.write(_line(Refusal(error="wrong token")))
                return
            writer.write(_line(Accepted()))
            while line := await reader.readline():
                writer.write(_line(await self._answer(line)))
                await writer.drain()
        except (TimeoutError, ConnectionError, ValueError, RecursionError, asyncio.CancelledError) as error:
            # Anything may connect to a port; a connection that breaks the protocol is closed without a reply.
            logger.debug("control connection dropped: %r", error)
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> protocol.Reply | Refusal:
        try:
            return await self._handle(decode_request(line))
        except (TypeError, ValueError, IndexError, RecursionError) as error:
            return Refusal(error=f"bad request: {error!r}")

    async def _handle(self, request: protocol.ControlRequest[protocol.Reply]) -> protocol.Reply:
        state = self._state
        if isinstance(request, protocol.GetRequest):
            keys = request.keys
            await self._values_changed.wait_for(lambda: all(key in state.values for key in keys), request.wait_s)
            return protocol.ValuesReply(
                **self._status(), values={key: state.values[key] for key in keys if key in state.values}
            )
        if isinstance(request, protocol.PoolRequest):
            known = request.revision
            await self._pool_changed.wait_for(lambda: state.pool_revision != known, request.wait_s)
            return protocol.PoolReply(**self._status(), revision=state.pool_revision, members=pool(state))
        self._apply(request)
        if isinstance(request, protocol.HeartbeatRequest):
            return await self._heartbeat(request)
        return protocol.Reply(**self._status())

    async def _heartbeat(self, request: protocol.HeartbeatRequest) -> protocol.HeartbeatReply:
        state, rank = self._state, request.node_rank

        def is_changed() -> bool:
            return request.revision is not None and state.nodes[rank].revision != request.revision

        await self._nodes_changed[rank].wait_for(lambda: state.phase != request.phase or is_changed(), request.wait_s)
        return protocol.HeartbeatReply(**self._status(), assignment=assignment(state, rank) if is_changed() else None)

    def _status(self) -> dict[str, Any]:
        state = self._state
        return {
            "phase": state.phase,
            "failure": state.failure,
            "stop_reason": state.stop.reason,
            "all_nodes_left": all_nodes_left(state),
            "time": time.time(),
        }


def _line(message: object) -> bytes:
    return to_json(message) + b"\n"

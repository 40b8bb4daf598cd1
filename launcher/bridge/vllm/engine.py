"""One engine's side of an update: which version it serves, and the steps from one to the next."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from launcher.bridge.mode import Mode
from launcher.bridge.vllm.spans import VersionSpans

POLL_S = 0.005
LONGEST_POLL_S = 0.1


class Refused(Exception):
    """A request that this engine does not carry out, with the HTTP status that says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class BridgeEngine:
    """The state machine behind the bridge's routes. One update at a time; versions only rise.

    ``state`` is ``serving``, ``preparing`` (weights arrive beside the live ones) or ``quarantined``: weights are being
    written, or that failed part of the way; they may be a mix, so the engine stays paused and answers nothing until a
    commit succeeds.

    Versions are ordered by the trainers' incarnation first: trainers that were restarted from a checkpoint go on with a
    lower number, and what is left of those before them is refused.

    Args:
        awaits_weights: the weights that it was started with are out of date; it answers nothing before a commit.
    """

    def __init__(self, *, awaits_weights: bool = False) -> None:
        self.version: int | None = None
        self.state = "serving"
        self.awaits_weights = awaits_weights
        self._incarnation = self._newest = 0
        self._committed: tuple[int, int] | None = None
        self.spans = VersionSpans()
        self._preparing: int | None = None
        self._mode = Mode.SHADOW
        self._paused_at: float | None = None
        """When an update paused this engine, which somebody else had not paused before; it will resume it."""

        self._updates = 0
        self._lock = asyncio.Lock()

    async def handle(self, engine: Any, method: str, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """Carries out one request on vLLM's engine client.

        Raises:
            Refused: it cannot be carried out, with the reason.
        """
        if method == "GET" and route == "info":
            return {
                "version": self.version,
                "state": self.state,
                "preparing": self._preparing,
                "updates": self._updates,
                "paused": await engine.is_paused(),
            }
        if method == "GET" and route == "is_paused":
            return {"paused": await engine.is_paused()}
        handlers = {
            "bind": self._bind,
            "connect": self._connect,
            "prepare": self._prepare,
            "vote": self._vote,
            "commit": self._commit,
            "abort": self._abort,
            "pause": self._pause,
            "resume": self._resume,
            "disconnect": self._disconnect,
        }
        if method != "POST" or route not in handlers:
            raise Refused(404, f"no such route: {method} /bridge/{route}")
        incarnation = int(body.get("incarnation", self._incarnation))
        # Before it is this request's turn: one that waits for trainers that are gone gives way.
        self._newest = max(self._newest, incarnation)
        async with self._lock:
            self._check_incarnation(incarnation)
            return await handlers[route](engine, body)

    def _check_incarnation(self, incarnation: int) -> None:
        """Trainers that were restarted begin anew; those before them have no say any more."""
        if incarnation < self._incarnation:
            raise Refused(409, f"the trainers have been restarted {self._incarnation} times, not {incarnation}")
        if incarnation > self._incarnation:
            self._incarnation, self._preparing = incarnation, None
            if self.state == "preparing":
                self.state = "serving"

    async def _bind(self, engine: Any, body: dict[str, Any]) -> dict[str, Any]:
        return {"workers": await _workers(engine, "bind", body)}

    async def _connect(self, engine: Any, body: dict[str, Any]) -> dict[str, Any]:
        answers = await _workers(engine, "connect", body)
        self._mode = Mode(body["mode"])
        return {"workers": answers, "version": self.version}

    async def _prepare(self, engine: Any, body: dict[str, Any]) -> dict[str, Any]:
        version = self._newer(body)
        if self._mode is Mode.INPLACE:
            await self._quarantine(engine)
        await _workers(engine, "prepare", body)
        self._preparing = version
        if self.state == "serving":
            self.state = "preparing"
        return {"version": version}

    async def _vote(self, engine: Any, body: dict[str, Any]) -> dict[str, Any]:
        version = self._prepared(body)
        deadline = time.monotonic() + float(body["timeout_s"])
        pause = POLL_S
        while True:
            answers = await _workers(engine, "status", {})
            states = {answer["state"] for answer in answers}
            if "failed" in states:
                error = next(answer["error"] for answer in answers if answer["state"] == "failed")
                await self._abort(engine, body)
                raise Refused(409, f"version {version} was not received: {error}")
            if states == {"received"}:
                return {"version": version, "digests": [answer["digest"] for answer in answers]}
            if self._newest > self._incarnation:
                await self._abort(engine, body)
                raise Refused(409, f"version {version} was not received: the trainers have been restarted")
            if time.monotonic() > deadline:
                raise Refused(504, f"version {version} was not received within {body['timeout_s']} s")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_POLL_S)

    async def _commit(self, engine: Any, body: dict[str, Any]) -> dict[str, Any]:
        """Pause at a step boundary, write, drop what was computed from the old weights, stamp, resume."""
        version = self._prepared(body)
        begin = time.monotonic()
        await self._quarantine(engine)
        await _workers(engine, "commit", {"version": version})
        if body.get("reset_prefix_cache", True):
            # Running requests are preempted and their keys and values computed anew: nothing of the old weights is
            # left to be reused, neither by them nor, through shared prefixes, by others.
            await engine.reset_prefix_cache(reset_running_requests=True)
        if hasattr(engine, "update_weight_version"):
            # vLLM 0.32 labels the tokens of its own token-in-token-out answers.
            await engine.update_weight_version(str(version))
        self.spans.committed(engine, version)
        self.version, self.state, self._preparing = version, "serving", None
        self._committed, self.awaits_weights = (self._incarnation, version), False
        self._updates += 1
        if self._paused_at is None:
            return {"version": version, "pause_s": time.monotonic() - begin}
        await engine.resume_generation()
        begin, self._paused_at = self._paused_at, None
        return {"version": version, "pause_s": time.monotonic() - begin}

    async def _quarantine(self, engine: Any) -> None:
        """Stops decoding at a step boundary, before the first byte of the live weights changes."""
        if self.state == "quarantined":
            return
        if not await engine.is_paused():
            self._paused_at = time.monotonic()
        await engine.pause_generation(mode="keep", clear_cache=False)
        self.state = "quarantined"

    async def _abort(self, engine: Any, body: dict[str, Any]) -> dict[str, Any]:
        await _workers(engine, "drop", {})
        self._preparing = None
        if self.state == "preparing":
            self.state = "serving"
        return {"version": self.version}

    async def _pause(self, engine: Any, body: dict[str, Any]) -> dict[str, Any]:
        await engine.pause_generation(mode=str(body.get("mode", "keep")), clear_cache=False)
        return {"paused": True}

    async def _resume(self, engine: Any, body: dict[str, Any]) -> dict[str, Any]:
        if self.state == "quarantined":
            raise Refused(409, "this engine's weights may be a mix of two versions; it resumes with the next commit")
        await engine.resume_generation()
        return {"paused": False}

    async def _disconnect(self, engine: Any, body: dict[str, Any]) -> dict[str, Any]:
        await _workers(engine, "disconnect", {})
        self._preparing = None
        return {"version": self.version}

    def _newer(self, body: dict[str, Any]) -> int:
        version = int(body["version"])
        if self._committed is not None and (self._incarnation, version) <= self._committed:
            raise Refused(409, f"version {version} is not newer than {self.version}, which is being served")
        return version

    def _prepared(self, body: dict[str, Any]) -> int:
        version = int(body["version"])
        if version != self._preparing:
            raise Refused(409, f"version {version} is not being prepared (but {self._preparing} is)")
        return version


async def _workers(engine: Any, op: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    """One call to every worker of the engine.

    Raises:
        Refused: a worker could not do it; its own words.
    """
    answers: list[dict[str, Any]] = await engine.collective_rpc("bridge_call", args=(op, request))
    errors = [answer["error"] for answer in answers if "state" not in answer and answer.get("error")]
    if errors:
        raise Refused(500, "; ".join(errors))
    return answers

"""One engine's side of an update: which version it serves, and the steps from one to the next."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from launcher.bridge.settings import Mode
from launcher.bridge.vllm.pause import pause, settled
from launcher.bridge.vllm.served import Served

POLL_S = 0.005
LONGEST_POLL_S = 0.1
SETTLED_TIMEOUT_S = 10.0
"""For vLLM's front end to count what its engine has produced, of which there is little."""


class Refused(Exception):
    """A request that this engine does not carry out, with the HTTP status that says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class BridgeEngine:
    """The state machine behind the bridge's routes. One update at a time; versions only rise.

    ``state`` is ``serving``, ``preparing`` (a version arrives beside the live one) or ``quarantined``: one is being
    written, or that failed part of the way; it may be a mix, so the engine stays paused and answers nothing until a
    commit succeeds.

    Versions are ordered by the trainers' incarnation first: trainers that were restarted from a checkpoint go on with a
    lower number, and what is left of those before them is refused. Adapters have versions of their own.

    Args:
        awaits_weights: the weights that it was started with are out of date; it answers nothing before a commit.
    """

    def __init__(self, *, awaits_weights: bool = False) -> None:
        self.awaits_weights = awaits_weights
        self.weights = Served()
        self.adapters: dict[str, Served] = {}
        self._incarnation = self._newest = 0
        self._unsure: set[str | None] = set()
        """What may be a mix of two versions: adapters by name, None for the weights."""

        self._paused_at: float | None = None
        """When an update paused this engine, which somebody else had not paused before; it will resume it."""

        self._lock = asyncio.Lock()

    @property
    def version(self) -> int | None:
        """Of the weights; None before the first commit."""
        return self.weights.version

    @property
    def state(self) -> str:
        """What it is doing."""
        if self._unsure:
            return "quarantined"
        is_preparing = any(served.preparing is not None for served in (self.weights, *self.adapters.values()))
        return "preparing" if is_preparing else "serving"

    async def handle(
        self, engine: Any, method: str, route: str, body: dict[str, Any], models: Any = None
    ) -> dict[str, Any]:
        """Carries out one request on vLLM's engine client.

        Args:
            models: vLLM's list of models, for adapters.

        Raises:
            Refused: it cannot be carried out, with the reason.
        """
        if method == "GET" and route == "info":
            return {
                "version": self.version,
                "state": self.state,
                "preparing": self.weights.preparing,
                "updates": self.weights.updates,
                "adapters": {name: served.version for name, served in self.adapters.items()},
                "paused": await engine.is_paused(),
            }
        if method == "GET" and route == "is_paused":
            return {"paused": await engine.is_paused()}
        steps = {
            "bind": self._bind,
            "connect": self._connect,
            "relay": self._relay,
            "prepare": self._prepare,
            "vote": self._vote,
            "commit": self._commit,
            "abort": self._abort,
            "disconnect": self._disconnect,
        }
        handlers = {"pause": self._pause, "resume": self._resume}
        if method != "POST" or route not in steps.keys() | handlers:
            raise Refused(404, f"no such route: {method} /bridge/{route}")
        incarnation = int(body.get("incarnation", self._incarnation))
        # Before it is this request's turn: one that waits for trainers that are gone gives way.
        self._newest = max(self._newest, incarnation)
        async with self._lock:
            self._check_incarnation(incarnation)
            if route in handlers:
                return await handlers[route](engine, body)
            served = self._named(body.get("adapter"), models)
            answer = await steps[route](engine, served, body)
            if route == "commit" and served.adapter is not None:
                served.offer(models)
            return answer

    def _named(self, adapter: str | None, models: Any) -> Served:
        if adapter is None:
            return self.weights
        if adapter not in self.adapters:
            taken = [*(card.name for card in models.base_model_paths), *models.lora_requests]
            if adapter in taken:
                raise Refused(409, f"another model of this engine is called {adapter!r} already")
            self.adapters[adapter] = Served(adapter=adapter, lora_id=models.lora_id_counter.inc(1))
        return self.adapters[adapter]

    def _check_incarnation(self, incarnation: int) -> None:
        """Trainers that were restarted begin anew; those before them have no say any more."""
        if incarnation < self._incarnation:
            raise Refused(409, f"the trainers have been restarted {self._incarnation} times, not {incarnation}")
        if incarnation > self._incarnation:
            self._incarnation = incarnation
            for served in (self.weights, *self.adapters.values()):
                served.preparing = None

    async def _bind(self, engine: Any, served: Served, body: dict[str, Any]) -> dict[str, Any]:
        return {"workers": await _workers(engine, "bind", served, body)}

    async def _connect(self, engine: Any, served: Served, body: dict[str, Any]) -> dict[str, Any]:
        answers = await _workers(engine, "connect", served, body)
        # Workers receive an adapter beside the one in use, whatever the mode.
        served.mode = Mode(body["mode"]) if served.adapter is None else Mode.SHADOW
        return {"workers": answers, "version": served.version}

    async def _relay(self, engine: Any, served: Served, body: dict[str, Any]) -> dict[str, Any]:
        """From the next version on, this replica passes on to another what it receives."""
        await _workers(engine, "relay", served, body)
        return {"version": served.version}

    async def _prepare(self, engine: Any, served: Served, body: dict[str, Any]) -> dict[str, Any]:
        version = self._newer(served, body)
        if served.mode is Mode.INPLACE:
            await self._quarantine(engine, served)
        await _workers(engine, "prepare", served, body)
        served.preparing = version
        return {"version": version}

    async def _vote(self, engine: Any, served: Served, body: dict[str, Any]) -> dict[str, Any]:
        version = self._prepared(served, body)
        try:
            digests = await self._received(engine, served, float(body["timeout_s"]))
            if served.adapter is not None:
                await _workers(engine, "stage", served, body)
        except Refused as refused:
            if refused.status != 504:
                await self._abort(engine, served, body)
            raise
        return {"version": version, "digests": digests}

    async def _received(self, engine: Any, served: Served, timeout_s: float) -> list[Any]:
        """Waits until every worker has received the version; the digests of what arrived."""
        deadline = time.monotonic() + timeout_s
        interval = POLL_S
        while True:
            answers = await _workers(engine, "status", served, {})
            states = {answer["state"] for answer in answers}
            if "failed" in states:
                error = next(answer["error"] for answer in answers if answer["state"] == "failed")
                raise Refused(409, f"version {served.preparing} was not received: {error}")
            if states == {"received"}:
                return [answer["digest"] for answer in answers]
            if self._newest > self._incarnation:
                raise Refused(409, f"version {served.preparing} was not received: the trainers have been restarted")
            if time.monotonic() > deadline:
                raise Refused(504, f"version {served.preparing} was not received within {timeout_s} s")
            await asyncio.sleep(interval)
            interval = min(2 * interval, LONGEST_POLL_S)

    async def _commit(self, engine: Any, served: Served, body: dict[str, Any]) -> dict[str, Any]:
        """Pause at a step boundary, write, drop what was computed from the old weights, stamp, resume."""
        version = self._prepared(served, body)
        begin = time.monotonic()
        await self._quarantine(engine, served)
        await _workers(engine, "commit", served, {"version": version})
        if body.get("reset_prefix_cache", True):
            # Running requests are preempted and their keys and values computed anew: nothing of the old weights is
            # left to be reused, neither by them nor, through shared prefixes, by others.
            await engine.reset_prefix_cache(reset_running_requests=True)
        if served.adapter is None and hasattr(engine, "update_weight_version"):
            # vLLM 0.32 labels the tokens of its own token-in-token-out answers.
            await engine.update_weight_version(str(version))
        if not await settled(engine, SETTLED_TIMEOUT_S):
            raise Refused(500, f"vLLM has not taken in its own outputs within {SETTLED_TIMEOUT_S:.0f} s")
        served.spans.committed(engine, version)
        served.version, served.committed, served.preparing = version, (self._incarnation, version), None
        served.updates += 1
        if body.get("releases", True):
            self.awaits_weights = False
        self._unsure.discard(served.adapter)
        if self._paused_at is None or self._unsure:
            return {"version": version, "pause_s": time.monotonic() - begin}
        await engine.resume_generation()
        begin, self._paused_at = self._paused_at, None
        return {"version": version, "pause_s": time.monotonic() - begin}

    async def _quarantine(self, engine: Any, served: Served) -> None:
        """Stops decoding at a step boundary, before the first byte of what is live changes."""
        if not self._unsure:
            if not await engine.is_paused():
                self._paused_at = time.monotonic()
            await pause(engine)
        self._unsure.add(served.adapter)

    async def _abort(self, engine: Any, served: Served, body: dict[str, Any]) -> dict[str, Any]:
        await _workers(engine, "drop", served, {})
        served.preparing = None
        return {"version": served.version}

    async def _pause(self, engine: Any, body: dict[str, Any]) -> dict[str, Any]:
        await engine.pause_generation(mode=str(body.get("mode", "keep")), clear_cache=False)
        return {"paused": True}

    async def _resume(self, engine: Any, body: dict[str, Any]) -> dict[str, Any]:
        if self.state == "quarantined":
            raise Refused(409, "this engine's weights may be a mix of two versions; it resumes with the next commit")
        await engine.resume_generation()
        return {"paused": False}

    async def _disconnect(self, engine: Any, served: Served, body: dict[str, Any]) -> dict[str, Any]:
        await _workers(engine, "disconnect", served, {})
        served.preparing = None
        return {"version": served.version}

    def _newer(self, served: Served, body: dict[str, Any]) -> int:
        version = int(body["version"])
        if served.committed is not None and (self._incarnation, version) <= served.committed:
            raise Refused(409, f"version {version} is not newer than {served.version}, which is being served")
        return version

    def _prepared(self, served: Served, body: dict[str, Any]) -> int:
        version = int(body["version"])
        if version != served.preparing:
            raise Refused(409, f"version {version} is not being prepared (but {served.preparing} is)")
        return version


async def _workers(engine: Any, op: str, served: Served, request: dict[str, Any]) -> list[dict[str, Any]]:
    """One call to every worker of the engine.

    Raises:
        Refused: a worker could not do it; its own words.
    """
    answers: list[dict[str, Any]] = await engine.collective_rpc("bridge_call", args=(op, {**request, **served.about}))
    errors = [answer["error"] for answer in answers if "state" not in answer and answer.get("error")]
    if errors:
        raise Refused(500, "; ".join(errors))
    return answers

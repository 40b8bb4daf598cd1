"""One engine's side of an update, whatever the engine: which version it serves, and the steps from one to the next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from launcher.bridge import protocol as p
from launcher.bridge.engine.version_spans import RunningRequest, VersionSpans
from launcher.bridge.settings import Mode
from launcher.common.codec import CodecError, to_builtins

POLL_S = 0.005
LONGEST_POLL_S = 0.1
DRAIN_TIMEOUT_S = 10.0
"""For the engine's front end to count what its engine has produced, of which there is little."""


class Refused(Exception):
    """A request that this engine does not carry out, with the HTTP status that says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class EngineFrontEnd(Protocol):
    """What an update needs of an engine's front end. Its event loop calls every method."""

    async def call_workers(self, operation: str, fields: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """Has every worker carry out one operation, between two forward passes; the replies in the order of ranks."""

    async def is_paused(self) -> bool:
        """Whether it does not decode."""

    async def pause(self) -> None:
        """Returns when no step is in flight and none will begin; running requests are kept."""

    async def pause_generation(self, mode: str) -> None:
        """As ``pause``, on somebody's request: ``mode`` is the engine's word for what becomes of running requests."""

    async def resume(self) -> None:
        """Decodes again."""

    async def reset_prefix_cache(self) -> None:
        """Drops what was computed from the old weights; running requests' keys and values are computed anew."""

    async def set_version(self, version: int) -> None:
        """Labels what comes from now on with a version, if the engine has such labels."""

    async def drain_outputs(self, timeout_s: float) -> bool:
        """Waits until all that a paused engine has produced is counted with its requests; False if not in time."""

    def running_requests(self) -> Sequence[RunningRequest]:
        """The requests that the engine has in hand."""

    def new_adapter(self, name: str) -> int:
        """A number for an adapter of the bridge's.

        Raises:
            Refused: another model of the engine has that name.
        """

    def register_adapter(self, name: str, lora_id: int) -> None:
        """From now on requests whose ``model`` is the adapter's name are answered with it."""


@dataclass(slots=True, kw_only=True)
class ServedModel:
    """One thing that has versions of its own: the model's weights, or an adapter that the bridge brought."""

    adapter: str | None = None
    """Name of the adapter; None for the model's weights."""

    lora_id: int | None = None
    """The engine's number of the adapter."""

    version: int | None = None
    committed: tuple[int, int] | None = None
    """The trainers' restart count and the version, of the last commit."""

    preparing: int | None = None
    mode: Mode = Mode.SHADOW
    updates: int = 0
    spans: VersionSpans = field(default_factory=VersionSpans)


class UpdateStateMachine:
    """Carries out the bridge's requests. One update at a time; versions only rise.

    ``state`` is ``serving``, ``preparing`` (a version arrives beside the live one) or ``quarantined``: one is being
    written, or that failed part of the way; it may be a mix, so the engine stays paused and answers nothing until a
    commit succeeds.

    Versions are ordered by the trainers' restart count first: trainers that were restarted from a checkpoint go on with
    a lower number, and requests of those before them are refused. Adapters have versions of their own.

    Args:
        awaits_weights: the weights that it was started with are out of date; it answers nothing before a commit.
    """

    def __init__(self, *, awaits_weights: bool = False) -> None:
        self.awaits_weights = awaits_weights
        self.weights = ServedModel()
        self.adapters: dict[str, ServedModel] = {}
        self._restart_count = self._newest = 0
        self._unsure: set[str | None] = set()
        """What may be a mix of two versions: adapters by name, None for the weights."""

        self._paused_at: float | None = None
        """When an update paused this engine, which was not paused before; the commit will resume it."""

        self._lock = asyncio.Lock()
        self._steps: dict[type[p.BridgeRequest[Any]], Callable[..., Awaitable[Any]]] = {
            p.Bind: self._bind,
            p.Connect: self._connect,
            p.RelayTo: self._relay,
            p.Prepare: self._prepare,
            p.Vote: self._vote,
            p.Commit: self._commit,
            p.Abort: self._abort,
            p.Disconnect: self._disconnect,
        }

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

    async def handle(self, engine: EngineFrontEnd, request: p.BridgeRequest[Any]) -> Any:
        """Carries out one request; the reply.

        Raises:
            Refused: it cannot be carried out, with the reason.
        """
        if isinstance(request, p.GetInfo):
            return p.ReplicaStatus(
                version=self.version,
                state=self.state,
                preparing=self.weights.preparing,
                updates=self.weights.updates,
                adapters={name: served.version for name, served in self.adapters.items()},
                paused=await engine.is_paused(),
            )
        if isinstance(request, p.GetPaused):
            return p.PausedReply(paused=await engine.is_paused())
        restart_count = self._restart_count if request.restart_count is None else request.restart_count
        # Before it is this request's turn: one that waits for trainers that are gone gives way.
        self._newest = max(self._newest, restart_count)
        async with self._lock:
            self._check_restart_count(restart_count)
            if isinstance(request, p.Pause):
                await engine.pause_generation(request.mode)
                return p.PausedReply(paused=True)
            if isinstance(request, p.Resume):
                return await self._resume(engine)
            served = self._served(engine, request.adapter)
            request = replace(request, lora_id=served.lora_id)
            return await self._steps[type(request)](engine, served, request)

    def _served(self, engine: EngineFrontEnd, adapter: str | None) -> ServedModel:
        if adapter is None:
            return self.weights
        if adapter not in self.adapters:
            lora_id = engine.new_adapter(adapter)
            self.adapters[adapter] = ServedModel(adapter=adapter, lora_id=lora_id)
        return self.adapters[adapter]

    def _check_restart_count(self, restart_count: int) -> None:
        """Trainers that were restarted begin anew; requests of those before them are refused."""
        if restart_count < self._restart_count:
            raise Refused(409, f"the trainers have been restarted {self._restart_count} times, not {restart_count}")
        if restart_count > self._restart_count:
            self._restart_count = restart_count
            for served in (self.weights, *self.adapters.values()):
                served.preparing = None

    async def _bind(self, engine: EngineFrontEnd, served: ServedModel, request: p.Bind) -> p.BindReply:
        return p.BindReply(workers=tuple(await _call_workers(engine, request)))

    async def _connect(self, engine: EngineFrontEnd, served: ServedModel, request: p.Connect) -> p.ConnectReply:
        workers = await _call_workers(engine, request)
        # Workers receive an adapter beside the one in use, whatever the mode.
        served.mode = Mode(request.mode) if served.adapter is None else Mode.SHADOW
        return p.ConnectReply(workers=tuple(workers), version=served.version)

    async def _relay(self, engine: EngineFrontEnd, served: ServedModel, request: p.RelayTo) -> p.VersionReply:
        await _call_workers(engine, request)
        return p.VersionReply(version=served.version)

    async def _prepare(self, engine: EngineFrontEnd, served: ServedModel, request: p.Prepare) -> p.VersionReply:
        if served.committed is not None and (self._restart_count, request.version) <= served.committed:
            raise Refused(409, f"version {request.version} is not newer than {served.version}, which is being served")
        if served.mode is Mode.INPLACE:
            await self._quarantine(engine, served)
        await _call_workers(engine, request)
        served.preparing = request.version
        return p.VersionReply(version=request.version)

    async def _vote(self, engine: EngineFrontEnd, served: ServedModel, request: p.Vote) -> p.VoteReply:
        _check_prepared(served, request.version)
        try:
            digests = await self._received(engine, served, request)
            if served.adapter is not None:
                await _call_workers(engine, p.StageAdapter(adapter=served.adapter, lora_id=served.lora_id))
        except Refused as refused:
            if refused.status != 504:
                await self._drop(engine, served)
            raise
        return p.VoteReply(version=request.version, digests=tuple(digests))

    async def _received(self, engine: EngineFrontEnd, served: ServedModel, request: p.Vote) -> list[int | None]:
        """Waits until every worker has received the version; the checksums of what arrived."""
        deadline = time.monotonic() + request.timeout_s
        interval = POLL_S
        question = p.GetStatus(adapter=served.adapter, lora_id=served.lora_id)
        while True:
            answers: list[p.WorkerStatus] = await _call_workers(engine, question)
            states = {answer.state for answer in answers}
            if "failed" in states:
                error = next(answer.error for answer in answers if answer.state == "failed")
                raise Refused(409, f"version {served.preparing} was not received: {error}")
            if states == {"received"}:
                return [answer.digest for answer in answers]
            if self._newest > self._restart_count:
                raise Refused(409, f"version {served.preparing} was not received: the trainers have been restarted")
            if time.monotonic() > deadline:
                raise Refused(504, f"version {served.preparing} was not received within {request.timeout_s} s")
            await asyncio.sleep(interval)
            interval = min(2 * interval, LONGEST_POLL_S)

    async def _commit(self, engine: EngineFrontEnd, served: ServedModel, request: p.Commit) -> p.CommitReply:
        """Pause at a step boundary, write, drop what was computed from the old weights, stamp, resume."""
        version = request.version
        _check_prepared(served, version)
        begin = time.monotonic()
        await self._quarantine(engine, served)
        await _call_workers(engine, request)
        if request.reset_prefix_cache:
            # Running requests are preempted and their keys and values computed anew: nothing of the old weights is
            # left to be reused, neither by them nor, through shared prefixes, by others.
            await engine.reset_prefix_cache()
        if served.adapter is None:
            await engine.set_version(version)
        if not await engine.drain_outputs(DRAIN_TIMEOUT_S):
            raise Refused(500, f"the engine has not taken in its own outputs within {DRAIN_TIMEOUT_S:.0f} s")
        served.spans.committed(engine.running_requests(), version)
        served.version, served.committed, served.preparing = version, (self._restart_count, version), None
        served.updates += 1
        if request.releases:
            self.awaits_weights = False
        self._unsure.discard(served.adapter)
        if self._paused_at is not None and not self._unsure:
            await engine.resume()
            begin, self._paused_at = self._paused_at, None
        if served.adapter is not None and served.lora_id is not None:
            engine.register_adapter(served.adapter, served.lora_id)
        return p.CommitReply(version=version, pause_s=time.monotonic() - begin)

    async def _quarantine(self, engine: EngineFrontEnd, served: ServedModel) -> None:
        """Stops decoding at a step boundary, before the first byte of what is live changes."""
        if not self._unsure:
            if not await engine.is_paused():
                self._paused_at = time.monotonic()
            await engine.pause()
        self._unsure.add(served.adapter)

    async def _abort(self, engine: EngineFrontEnd, served: ServedModel, request: p.Abort) -> p.VersionReply:
        await self._drop(engine, served)
        return p.VersionReply(version=served.version)

    async def _drop(self, engine: EngineFrontEnd, served: ServedModel) -> None:
        await _call_workers(engine, p.Drop(adapter=served.adapter, lora_id=served.lora_id))
        served.preparing = None

    async def _disconnect(self, engine: EngineFrontEnd, served: ServedModel, request: p.Disconnect) -> p.VersionReply:
        await _call_workers(engine, request)
        served.preparing = None
        return p.VersionReply(version=served.version)

    async def _resume(self, engine: EngineFrontEnd) -> p.PausedReply:
        if self.state == "quarantined":
            raise Refused(409, "this engine's weights may be a mix of two versions; it resumes with the next commit")
        await engine.resume()
        return p.PausedReply(paused=False)


def _check_prepared(served: ServedModel, version: int) -> None:
    if version != served.preparing:
        raise Refused(409, f"version {version} is not being prepared (but {served.preparing} is)")


async def _call_workers(engine: EngineFrontEnd, request: p.BridgeRequest[Any]) -> list[Any]:
    """Every worker's reply to one request.

    Raises:
        Refused: a worker could not carry it out; its own words.
    """
    answers = await engine.call_workers(request.operation, to_builtins(request))
    errors = [str(answer[p.FAILED]) for answer in answers if p.FAILED in answer]
    if errors:
        raise Refused(500, "; ".join(errors))
    try:
        return [p.decode_worker_reply(request, answer) for answer in answers]
    except CodecError as error:
        raise Refused(500, f"a worker's reply to `{request.operation}` is not one: {error}") from error

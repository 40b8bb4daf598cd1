"""What happens to a replica: it becomes ready, serves a version, restarts, or is dropped."""

from __future__ import annotations

from launcher.control.effects import Effects, LogEvent, Notify
from launcher.control.ending import mark_dirty
from launcher.control.model import ALL_URLS
from launcher.control.policy import backoff_s, counted_restarts
from launcher.control.protocol import EngineMasterRequest, EngineReadyRequest, PublishedRequest
from launcher.control.state import ControlState, ReplicaRecord, ReplicaState
from launcher.control.views import kept_replicas, serves
from launcher.events.schema import EngineReady, ReplicaChanged, RestartScheduled
from launcher.events.serialize import make_event


def engine_master(state: ControlState, request: EngineMasterRequest, _now: float) -> Effects:
    """The rendezvous address of a replica over several nodes is known."""
    record = state.replicas[request.replica]
    if request.restart_count == record.restart_count:
        record.master = request.address
        yield from mark_dirty(state, record.replica.node_ranks)


def engine_ready(state: ControlState, request: EngineReadyRequest, _now: float) -> Effects:
    """An engine is healthy."""
    record = state.replicas[request.replica]
    if request.restart_count != record.restart_count or record.state is not ReplicaState.STARTING:
        return
    record.state, record.url = ReplicaState.READY, request.url
    state.was_any_engine_ready = True
    yield from _pool_changed(state)
    if record.restart_count and serves(state, record):
        yield LogEvent(event=ReplicaChanged(replica=record.index, state="ready", url=record.url))
    yield LogEvent(
        event=EngineReady(
            replica=record.index, url=request.url, seconds=request.seconds, restart_count=request.restart_count
        )
    )


def weights_published(state: ControlState, request: PublishedRequest, _now: float) -> Effects:
    """Replicas serve a version. Trainers of an earlier start are ignored."""
    version = (request.restart_count, request.version)
    trainers = state.trainers
    if request.restart_count != trainers.restart_count or (state.published is not None and version < state.published):
        return
    state.published = version
    trainers.has_progressed = True
    yield from _pool_changed(state)
    for index, restart_count in request.replicas.items():
        record = state.replicas[index]
        if record.restart_count != restart_count or record.state is not ReplicaState.READY:
            continue
        is_back = record.restart_count > 0 and record.version is None
        record.version = version
        if is_back:
            yield LogEvent(event=ReplicaChanged(replica=index, state="ready", url=record.url, version=request.version))
    dropped = [record.index for record in state.replicas if record.index not in request.replicas]
    fields = {**request.fields, "version": request.version, "replicas": sorted(request.replicas), "dropped": dropped}
    yield LogEvent(event=make_event("published", fields))


def url_published(state: ControlState, record: ReplicaRecord, url: str) -> Effects:
    """A replica listens."""
    record.url = record.last_url = url
    yield from mark_dirty(state, record.replica.node_ranks)
    yield from gather_urls(state)


def gather_urls(state: ControlState) -> Effects:
    """One value with the URLs of all replicas, as soon as each that is not dropped has published its own."""
    urls = [record.last_url for record in kept_replicas(state.replicas)]
    if urls and None not in urls:
        is_new = ALL_URLS not in state.values
        state.values[ALL_URLS] = urls
        if is_new:
            yield from mark_dirty(state, state.trainers.slots)


def restart_limit(state: ControlState) -> int:
    """How many restarts of a replica may count."""
    most = state.settings.restart.max_engine_restarts
    # Engines that could never start would hardly start the next time.
    return most if state.was_any_engine_ready else min(1, most)


def restarts_that_count(state: ControlState, record: ReplicaRecord, now: float) -> list[float]:
    """Times of the restarts of a replica that count against the limit."""
    return counted_restarts(record.restart_times, now, state.settings.restart.count_window_s)


def restart_replica(state: ControlState, record: ReplicaRecord, reason: str, now: float) -> Effects:
    """All processes of a replica end, and start again after a pause."""
    restart, counted = state.settings.restart, restarts_that_count(state, record, now)
    pause_s = backoff_s(len(counted), restart.engine_backoff_s, restart.max_engine_backoff_s)
    record.restart_times = [*counted, now]
    record.starts_at = now + pause_s
    yield from _end(state, record, ReplicaState.RESTARTING)
    yield LogEvent(event=ReplicaChanged(replica=record.index, state="restarting", reason=reason))
    yield LogEvent(
        event=RestartScheduled(
            what="engine",
            replica=record.index,
            counted_restarts=len(record.restart_times),
            max_restarts=restart_limit(state),
            reason=reason,
            delay_s=pause_s,
        )
    )


def move_replica(state: ControlState, record: ReplicaRecord, now: float) -> Effects:
    """Another node has taken a slot of the replica's: it starts there, at once and without being counted."""
    record.starts_at = now
    yield from _end(state, record, ReplicaState.RESTARTING)


def drop_replica(state: ControlState, record: ReplicaRecord, reason: str) -> Effects:
    """A replica is left out for the rest of the attempt."""
    yield from _end(state, record, ReplicaState.DROPPED)
    yield LogEvent(event=ReplicaChanged(replica=record.index, state="dropped", reason=reason))


def start_due_replicas(state: ControlState, now: float) -> Effects:
    """Starts those whose pause is over."""
    for record in state.replicas:
        if record.state is ReplicaState.RESTARTING and now >= record.starts_at:
            record.state = ReplicaState.STARTING
            yield from _pool_changed(state)
            yield from mark_dirty(state, record.replica.node_ranks)


def _end(state: ControlState, record: ReplicaRecord, then: ReplicaState) -> Effects:
    record.state = then
    record.restart_count += 1
    record.url = record.master = record.version = None
    yield from _pool_changed(state)
    yield from mark_dirty(state, record.replica.node_ranks)


def _pool_changed(state: ControlState) -> Effects:
    state.pool_revision += 1
    yield Notify.POOL

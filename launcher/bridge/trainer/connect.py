"""How the trainer's ranks and the workers of replicas come to share a plan, and get links to each other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from launcher.bridge import protocol as p
from launcher.bridge.negotiation import replica_plan
from launcher.bridge.parallel import Results, call_each
from launcher.bridge.plan import Plan, first_difference, plan_digest, verify_plan
from launcher.bridge.trainer.rank_group import world
from launcher.bridge.trainer.replica_client import ReplicaClient
from launcher.bridge.trainer.replica_sender import RelayedSender, ReplicaSender, largest_messages
from launcher.bridge.transport.base import Meeting
from launcher.bridge.transport.choose import Place, choose_all
from launcher.bridge.transport.links import connect_senders
from launcher.common.errors import LauncherError, TransferError

logger = logging.getLogger(__name__)

GRACE_S = 1.0
"""Over a deadline, for a call to report itself that it is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectSettings:
    """What connecting needs to know besides the trainer's spec; the same on every rank but for ``device``."""

    address: str
    """Of this host."""

    transport: str
    mode: str
    """One of :class:`launcher.bridge.settings.Mode`."""

    places: tuple[Place, ...]
    """Of every trainer rank."""

    device: torch.device
    """Of this rank's tensors."""

    secret: str
    """Made for these links, by rank 0."""

    store: str
    """``host:port`` of rank 0's rendezvous store."""

    directory: Path | None
    """That trainer and engines share, for ``filesystem``."""

    timeout_s: float
    verify: bool
    generation: int
    """Distinguishes these links from earlier ones of the same replica."""

    adapter: str | None
    """Whose matrices are sent over them; None for the model's weights."""


def connect_replicas(
    replicas: Sequence[ReplicaClient],
    spec: p.TrainerSpec,
    workers: Mapping[int, Sequence[p.WorkerSpec]],
    settings: ConnectSettings,
    failure_reason: Callable[[int], str | None] = lambda _index: None,
) -> Results[ReplicaSender]:
    """Connects this rank to the workers of some replicas; every trainer rank calls it.

    Rank 0 sends each replica its request meanwhile. A replica fails if the two sides compute different plans (the first
    tensor in which they differ is named), a pair cannot have the transport that was asked for, or a rank or a worker
    does not come in time.

    Args:
        workers: by replica.
    """
    rank, begin = world()[0], time.monotonic()
    failures: dict[int, str] = {}
    plans: dict[int, Plan] = {}
    calls: dict[int, list[Callable[[], Any]]] = {}
    for replica in replicas:
        index = replica.index
        try:
            plans[index] = plan = replica_plan(spec, workers[index])
            if rank == 0:
                verify_plan(plan)
            calls[index] = [partial(_meet_workers, index, plan, workers[index], settings)]
        except LauncherError as error:
            failures[index] = str(error)
            continue
        if rank == 0:
            request = _connect_request(_group(settings, index), plan, workers[index], settings)
            calls[index].append(partial(_connect, replica, plan, request, settings.timeout_s))
    # The rendezvous, and the first exchange.
    results = call_each(calls, 2 * settings.timeout_s + GRACE_S, failure_reason)
    senders = {
        index: ReplicaSender(plan=plans[index], rank=rank, wires=found[0], verify=settings.verify)
        for index, found in results.values.items()
    }
    if senders:
        logger.info("connected to replicas %s in %.2f s", sorted(senders), time.monotonic() - begin)
    return Results(values=senders, failures=failures | results.failures)


def connect_relayed(
    children: Mapping[ReplicaClient, ReplicaClient],
    plans: Mapping[int, Plan],
    workers: Mapping[int, Sequence[p.WorkerSpec]],
    roots: Mapping[int, int],
    settings: ConnectSettings,
    failure_reason: Callable[[int], str | None] = lambda _index: None,
) -> Results[ReplicaSender]:
    """Connects replicas to others, which are connected, need the same, and relay; every trainer rank calls it.

    Args:
        children: with the replica that relays to each.
        plans: by root: that of the replica to which the trainer sends.
        workers: by replica.
        roots: of each child: the replica above it to which the trainer sends.
    """
    calls: dict[int, list[Callable[[], Any]]] = {}
    for child, parent in children.items() if world()[0] == 0 else ():
        root = roots[child.index]
        above, below = (tuple(worker.place for worker in workers[end.index]) for end in (parent, child))
        group = f"bridge-{settings.generation}-replica-{child.index}"
        request = replace(_connect_request(group, plans[root], workers[root], settings), relay_from=above)
        relay = p.RelayTo(**_link_fields(group, settings), child=child.index, places=below)
        calls[child.index] = [
            partial(_connect, child, plans[root], request, settings.timeout_s),
            partial(parent.call, relay, timeout_s=settings.timeout_s),
        ]
    results = call_each(calls, settings.timeout_s + GRACE_S, failure_reason)
    for child, parent in children.items():
        logger.info("replica %d relays to replica %d", parent.index, child.index)
    return Results(
        values={
            child.index: RelayedSender(plan=plans[roots[child.index]], parent=parent.index)
            for child, parent in children.items()
            if child.index not in results.failures
        },
        failures=results.failures,
    )


def _group(settings: ConnectSettings, index: int) -> str:
    # A name for people, but also of a directory.
    thing = "weights" if settings.adapter is None else sha256(settings.adapter.encode()).hexdigest()[:8]
    return f"bridge-{settings.generation}-{thing}-replica-{index}"


def _meet_workers(index: int, plan: Plan, workers: Sequence[p.WorkerSpec], settings: ConnectSettings) -> Any:
    """This rank's links to every worker of a replica that it sends anything."""
    rank = world()[0]
    meeting = Meeting(
        group=_group(settings, index),
        secret=settings.secret,
        store=settings.store,
        directory=settings.directory,
        address=settings.address,
        timeout_s=settings.timeout_s,
    )
    largest = largest_messages(plan, rank)
    candidates = [
        choose_all(settings.transport, settings.places, number, worker.place) for number, worker in enumerate(workers)
    ]
    transports = {worker: candidates[worker][rank] for worker in largest}
    return connect_senders(meeting, rank, transports, largest, settings.device)


def _link_fields(group: str, settings: ConnectSettings) -> dict[str, Any]:
    return {
        "transport": settings.transport,
        "group": group,
        "secret": settings.secret,
        "store": settings.store,
        "directory": None if settings.directory is None else str(settings.directory),
        "timeout_s": settings.timeout_s,
    }


def _connect_request(group: str, plan: Plan, workers: Sequence[p.WorkerSpec], settings: ConnectSettings) -> p.Connect:
    return p.Connect(
        **_link_fields(group, settings),
        workers=tuple(workers),
        plan=plan_digest(plan),
        places=settings.places,
        mode=settings.mode,
        verify=settings.verify,
    )


def _connect(replica: ReplicaClient, plan: Plan, request: p.Connect, timeout_s: float) -> None:
    for worker, answer in enumerate(replica.call(request, timeout_s=timeout_s).workers):
        if answer.plan != request.plan:
            name = first_difference(plan, answer.fingerprints)
            raise TransferError(
                f"Replica {replica.index}, worker {worker}, computes another plan than the trainer; they first"
                f" differ in `{name}`. HINT: trainer and engines must run the same launcher."
            )

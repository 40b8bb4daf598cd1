"""How the trainer's ranks and the workers of one replica come to share a plan and to be joined by wires."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from launcher.bridge.negotiation import TrainerFacts, replica_plan
from launcher.bridge.plan import Plan, first_difference
from launcher.bridge.trainer import rank_group as collective
from launcher.bridge.trainer.parallel import in_parallel
from launcher.bridge.trainer.replica_client import ReplicaClient
from launcher.bridge.trainer.replica_sender import RelayedSender, ReplicaSender, largest_messages
from launcher.bridge.transport.base import Meeting
from launcher.bridge.transport.choose import Place, choose_all
from launcher.bridge.transport.links import connect_senders
from launcher.common.errors import TransferError
from launcher.common.ports import hold_free_port, port_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinSettings:
    """What joining needs to know besides the facts."""

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
    """Made for this group, by rank 0."""

    directory: Path | None
    """That trainer and engines share, for ``filesystem``."""

    timeout_s: float
    verify: bool
    generation: int
    """Distinguishes these wires from earlier ones of the same replica."""

    adapter: str | None
    """Whose matrices go over them; None for the model's weights."""


def serve_store(address: str, timeout_s: float) -> tuple[dist.TCPStore, str]:
    """A rendezvous store on a port that is held, and its ``host:port``. Rank 0 keeps it while groups use it."""
    sock = hold_free_port(address)
    port = port_of(sock)
    store = dist.TCPStore(
        address,
        port,
        is_master=True,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=sock.detach(),
    )
    return store, f"{address}:{port}"


def bind(replica: ReplicaClient, facts: TrainerFacts, timeout_s: float) -> list[dict[str, Any]]:
    """Asks a replica's workers what they need of the trainer's tensors; rank 0 only.

    Raises:
        TransferError: the replica does not answer, or does not know what to do with a tensor.
    """
    answer = replica.call("bind", {"trainer": facts.to_json()}, timeout_s=timeout_s)
    return list(answer["workers"])


def join(
    replica: ReplicaClient, facts: TrainerFacts, workers: Sequence[dict[str, Any]], store: str, settings: JoinSettings
) -> ReplicaSender:
    """Joins one replica; every trainer rank calls it, with what rank 0 got from :func:`bind`.

    Raises:
        BridgeError: the two sides compute different plans (the first tensor they differ in is named), or a pair cannot
            have the transport that was asked for.
        RendezvousTimeout: a rank or a worker did not come.
    """
    rank, _size = collective.world()
    begin = time.monotonic()
    plan = replica_plan(facts, workers)
    places = [Place(*worker["place"]) for worker in workers]
    chosen = [choose_all(settings.transport, settings.places, index, place) for index, place in enumerate(places)]
    # A name for people, but also of a directory.
    thing = "weights" if settings.adapter is None else sha256(settings.adapter.encode()).hexdigest()[:8]
    group = f"bridge-{settings.generation}-{thing}-replica-{replica.index}"
    meeting = Meeting(
        group=group,
        secret=settings.secret,
        store=store,
        directory=settings.directory,
        address=settings.address,
        timeout_s=settings.timeout_s,
    )

    def ask() -> Any:
        _connect(replica, plan, workers, {**_words(group, store, settings), "relay": None}, settings)

    def meet_workers() -> Any:
        largest = largest_messages(plan, rank)
        transports = {worker: chosen[worker][rank] for worker in largest}
        return connect_senders(meeting, rank, transports, largest, settings.device)

    if rank == 0:
        plan.verify()
    wires = in_parallel([meet_workers, ask] if rank == 0 else [meet_workers])[0]
    logger.info(
        "joined replica %d (%d workers) by %s in %.2f s",
        *(replica.index, len(workers), ", ".join(sorted({ways[0] for row in chosen for ways in row}))),
        time.monotonic() - begin,
    )
    return ReplicaSender(plan=plan, rank=rank, wires=wires, verify=settings.verify)


def join_relayed(
    child: ReplicaClient,
    parent: ReplicaClient,
    plan: Plan,
    workers: Mapping[str, Sequence[dict[str, Any]]],
    root: int,
    store: str,
    settings: JoinSettings,
) -> ReplicaSender:
    """Joins a replica to another one, which has joined, needs the same, and relays; every trainer rank calls it.

    Args:
        plan: of ``root``.
        workers: what rank 0 got from :func:`bind`, by replica.
        root: the replica above both that the trainer sends to.

    Raises:
        BridgeError: as for :func:`join`.
    """
    if collective.world()[0] == 0:
        words = _words(f"bridge-{settings.generation}-replica-{child.index}", store, settings)
        above, below = ([worker["place"] for worker in workers[str(end.index)]] for end in (parent, child))
        body = {**words, "child": child.index, "places": below}
        in_parallel(
            [
                lambda: _connect(child, plan, workers[str(root)], {**words, "relay": above}, settings),
                lambda: parent.call("relay", body, timeout_s=settings.timeout_s),
            ]
        )
        logger.info("replica %d relays to replica %d", parent.index, child.index)
    return RelayedSender(plan=plan, parent=parent.index)


def _words(group: str, store: str, settings: JoinSettings) -> dict[str, Any]:
    """What both ends of wires are told."""
    return {
        "transport": settings.transport,
        "places": [[place.host, place.device] for place in settings.places],
        "store": store,
        "directory": None if settings.directory is None else str(settings.directory),
        "group": group,
        "secret": settings.secret,
        "timeout_s": settings.timeout_s,
    }


def _connect(
    replica: ReplicaClient,
    plan: Plan,
    workers: Sequence[dict[str, Any]],
    words: Mapping[str, Any],
    settings: JoinSettings,
) -> None:
    body = {
        **words,
        "workers": list(workers),
        "plan": plan.digest,
        "mode": settings.mode,
        "verify": settings.verify,
    }
    answers = replica.call("connect", body, timeout_s=settings.timeout_s)["workers"]
    for worker, answer in enumerate(answers):
        if answer["plan"] != plan.digest:
            name = first_difference(plan, answer.get("fingerprints", {}))
            raise TransferError(
                f"Replica {replica.index}, worker {worker}, computes another plan than the trainer; they first"
                f" differ in `{name}`. HINT: trainer and engines must run the same launcher."
            )

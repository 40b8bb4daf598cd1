"""How the trainer's ranks and the workers of one replica come to share a plan and a process group."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

from launcher.bridge import collective
from launcher.bridge.agreement import TrainerFacts, replica_plan
from launcher.bridge.groups import init_process_group, meet
from launcher.bridge.parallel import in_parallel
from launcher.bridge.replica import ReplicaClient
from launcher.bridge.reshard import first_difference
from launcher.bridge.sending import ReplicaSender
from launcher.errors import TransferError
from launcher.ports import hold_free_port, port_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinSettings:
    """What joining needs to know besides the facts."""

    address: str
    """Of this host."""

    backend: str
    timeout_s: float
    verify: bool
    generation: int
    """Distinguishes this group from earlier ones of the same replica."""


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
    """Joins one replica's group; every trainer rank calls it, with what rank 0 got from :func:`bind`.

    Raises:
        BridgeError: the two sides compute different plans; the first tensor they differ in is named.
        RendezvousTimeout: a rank or a worker did not come.
    """
    rank, size = collective.world()
    begin = time.monotonic()
    plan = replica_plan(facts, workers)
    group_name = f"bridge-{settings.generation}-replica-{replica.index}"
    host, _, port = store.rpartition(":")
    # Threads start with GPU 0 as their current device, so this one's is handed to them.
    gpu = settings.backend == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
    timeout = timedelta(seconds=settings.timeout_s)

    def ask() -> Any:
        body = {
            "workers": list(workers),
            "plan": plan.digest,
            "store": store,
            "group": group_name,
            "backend": settings.backend,
            "timeout_s": settings.timeout_s,
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

    def meet_workers() -> Any:
        if gpu:
            torch.cuda.set_device(device)
        group = init_process_group(
            settings.backend,
            timeout=timeout,
            world_size=size + len(workers),
            rank=rank,
            store=dist.TCPStore(host, int(port), is_master=False, timeout=timeout, wait_for_workers=False),
            group_name=group_name,
            address=settings.address,
            device=device,
        )
        meet(group, device, settings.timeout_s)
        return group

    if rank == 0:
        plan.verify()
    group = in_parallel([meet_workers, ask] if rank == 0 else [meet_workers])[0]
    logger.info("joined replica %d (%d workers) in %.2f s", replica.index, len(workers), time.monotonic() - begin)
    return ReplicaSender(plan=plan, rank=rank, group=group, device=device, verify=settings.verify)

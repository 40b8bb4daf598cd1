"""The replicas as one trainer rank sees them: which there are, which are connected, which serve the version at hand."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import distributed as dist

from launcher.bridge.codec.delta_encode import Base
from launcher.bridge.codec.local import LocalTensor
from launcher.bridge.parallel import LOOK_S, Results, call_each
from launcher.bridge.plan import Plan
from launcher.bridge.protocol import Bind, BridgeRequest, Disconnect, GetInfo, ReplicaStatus, TrainerSpec, WorkerSpec
from launcher.bridge.settings import BridgeSettings
from launcher.bridge.trainer.connect import (
    GRACE_S,
    ConnectSettings,
    connect_relayed,
    connect_replicas,
)
from launcher.bridge.trainer.discovery import ReplicaDiscovery, ReplicaInfo
from launcher.bridge.trainer.rank_group import RankGroup
from launcher.bridge.trainer.refusal import explained
from launcher.bridge.trainer.relay_tree import levels, orphans, parents, root
from launcher.bridge.trainer.replica_client import ReplicaClient
from launcher.bridge.trainer.replica_sender import RelayedSender, ReplicaSender
from launcher.bridge.transport.choose import Place, here
from launcher.common.errors import TransferError
from launcher.common.keys import bridge_key
from launcher.common.ports import serve_store

T = TypeVar("T")
R = TypeVar("R")
DISCONNECT_TIMEOUT_S = 10.0
INFO_TIMEOUT_S = 5.0
SLICE_S = 20.0
"""Rank 0 waits for engines in slices: the other ranks wait for it in an operation that may have a deadline."""

TRIES = 2
"""How often one start of a replica is offered the same version."""


class ReplicaSet:
    """Owner of all state about the replicas; nobody else writes it.

    All trainer ranks make one, and call the same methods in the same order; rank 0 alone sends requests to engines.

    Args:
        adapter: name of the adapter that is sent to them; None for the model's weights.
    """

    def __init__(
        self, settings: BridgeSettings, ranks: RankGroup, discovery: ReplicaDiscovery, adapter: str | None = None
    ) -> None:
        self._settings = settings
        self._ranks = ranks
        self._discovery = discovery
        self._adapter = adapter
        self._key = bridge_key(settings.token)
        self._clients: dict[int, ReplicaClient] = {}
        """Of every replica that there is, by index."""

        self._senders: dict[int, ReplicaSender] = {}
        """Of every replica that is connected to all ranks."""

        self._serving: dict[int, int] = {}
        """Replicas that serve the version that is being sent, or was sent last, with their restart counts."""

        self._direct: set[int] = set()
        """Replicas that get the version at hand from the trainer, whichever would relay to them."""

        self._relayed: set[int] = set()
        """Replicas to which others relay, or should have."""

        self._base = Base()
        """What this rank held of the last version that a replica committed; empty unless changes are sent."""

        self._spec: TrainerSpec | None = None
        """What the connected replicas were told of the trainer's tensors."""

        self._store: tuple[dist.TCPStore, str] | None = None
        self._generation = 0

    # What there is.

    @property
    def serving(self) -> Mapping[int, int]:
        """Restart counts of the replicas that serve the version that was sent last, by index."""
        return self._serving

    @property
    def size(self) -> int:
        """How many replicas there are."""
        return len(self._clients)

    @property
    def connected(self) -> Mapping[int, ReplicaSender]:
        """The replicas that are connected to every rank."""
        return self._senders

    def lacking(self) -> list[tuple[int, int]]:
        """Index and restart count of each replica that does not serve the version."""
        return [
            (index, client.info.restart_count)
            for index, client in self._clients.items()
            if self._serving.get(index) != client.info.restart_count
        ]

    def pending(self, failed: Collection[int] = ()) -> list[int]:
        """Replicas that are connected, have not failed, and do not serve the version yet."""
        return [i for i in self._clients if i in self._senders and i not in failed and i not in self._serving]

    def retriable(self, failed: Collection[int], refused: Collection[int]) -> list[int]:
        """Rank 0: replicas that failed for no reason of their own, answer, and can get the version from the trainer.

        Args:
            failed: that have failed.
            refused: those of them that only have to be connected again.
        """
        if self._ranks.rank != 0:
            return []
        asked = ({*self._relayed, *refused} & set(failed) & self._clients.keys()) - self._direct
        timeout_s = min(INFO_TIMEOUT_S, self._settings.timeout_s)
        return sorted(self._call(asked, GetInfo(), timeout_s).values)

    def base(self, index: int) -> tuple[int, Mapping[str, LocalTensor]] | None:
        """The version since which a connected replica is sent changes, and this rank's shards of it; None if it must
        get everything.
        """
        sender = self._senders[index]
        # A relay sends on what it has, which is a whole version in any case.
        if isinstance(sender, RelayedSender) or index in self._relayed or sender.committed is None:
            return None
        return (sender.committed, self._base.shards) if sender.committed == self._base.version else None

    def root(self, index: int) -> int:
        """The replica that the trainer sends to and from which a connected one gets its weights."""
        return root(self._parent_of(), index)

    def orphans(self, failed: Collection[int]) -> dict[int, str]:
        """Replicas to which one relays that has failed or is gone, with that reason."""
        return orphans(self._parent_of(), self._senders, failed)

    # What changes.

    def begin_version(self) -> None:
        """A new version: no replica serves it yet."""
        self._serving = {}

    def begin_delivery(self) -> None:
        """The version at hand is offered: relays are used again."""
        self._direct = set()

    def send_directly(self, indexes: Collection[int]) -> None:
        """From now on these replicas get the version at hand from the trainer."""
        self._direct |= set(indexes)

    def refresh(self) -> None:
        """Learns which replicas there are now; one that is gone, or was restarted, is not connected any more.

        Raises:
            LauncherError: the discovery fails.
        """
        found = self.ready() if self._ranks.rank == 0 else []
        now = self._ranks.broadcast(found, list[ReplicaInfo])
        same = {client.info: client for client in self._clients.values()}
        self._clients = {info.index: same.get(info) or self.client(info) for info in now}
        kept = {index for index, client in self._clients.items() if client.info in same}
        self.drop([index for index in self._senders if index not in kept])
        self._serving = {index: count for index, count in self._serving.items() if index in kept}

    def connect_missing(self, spec: TrainerSpec, device: torch.device, failed: Collection[int]) -> dict[int, str]:
        """Connects the replicas that are not; all of them anew when the trainer's tensors are not those of before.

        Args:
            failed: replicas that are not to be connected.

        Returns:
            Replicas that could not be connected, with reasons.
        """
        if spec is not self._spec:
            self.leave()
            self._spec = spec
        self._relayed = set(self._parent_of())
        missing = [index for index in self._clients if index not in self._senders and index not in failed]
        if not missing:
            return {}
        self._generation += 1
        workers, failures = self._bind(missing, spec)
        settings = self._connect_settings(device)
        tree = self._tree(spec, workers)
        self._relayed |= tree.keys()
        direct = [self._clients[index] for index in missing if index in workers and index not in tree]
        found = connect_replicas(direct, spec, workers, settings, self._failure_reason)
        self._senders |= found.values
        failures = {index: explained(text, spec) for index, text in {**found.failures, **failures}.items()}
        for children in levels(tree):
            failures = {**self._connect_relayed(children, tree, workers, settings), **failures}
        # A replica counts as connected only if every rank is connected to it.
        flags = torch.tensor([int(index in self._senders) for index in self._clients], dtype=torch.int64)
        everywhere = (self._ranks.all_reduce_sum(flags) == self._ranks.size).tolist()
        for index, is_connected in zip(self._clients, everywhere, strict=True):
            if not is_connected and index not in failed:
                failures.setdefault(index, f"Replica {index} did not connect to every trainer rank.")
        failures = {**self.orphans({*failures, *failed}), **failures}
        self.drop(failures)
        return failures

    def committed(
        self, version: int, indexes: Sequence[int], shards: Mapping[str, LocalTensor], only: frozenset[str] | None
    ) -> None:
        """Some replicas serve a version.

        Args:
            shards: what this rank sent, by name.
            only: names of those that were sent; None for all.
        """
        self._serving |= {index: self._clients[index].info.restart_count for index in indexes}
        # One that has lost its relay meanwhile serves the version, but is not connected any more.
        senders = [self._senders[index] for index in indexes if index in self._senders]
        for sender in senders:
            sender.committed = version
        if senders and self._settings.update == "delta":
            plans: list[Plan] = [sender.plan for sender in senders]
            self._base.advance(version, shards, only, plans)

    def drop(self, failed: Collection[int]) -> None:
        """Closes the links to replicas that failed, and to those that they relay to; the next version connects them
        again.
        """
        for index in (*failed, *self.orphans(failed)):
            sender = self._senders.pop(index, None)
            if sender is not None:
                sender.close()

    def leave(self) -> None:
        """Disconnects from all replicas, which go on serving what they have."""
        self._serving = {}
        self.call_pending(Disconnect(), time.monotonic() + min(DISCONNECT_TIMEOUT_S, self._settings.timeout_s))
        for sender in self._senders.values():
            sender.close()
        self._senders = {}
        self._base.clear()
        self._spec = None
        self._store = None

    # Calls.

    def ready(self) -> list[ReplicaInfo]:
        """Rank 0: the replicas that answer.

        Raises:
            LauncherError: the discovery fails.
        """
        return [info for info in self._discovery.replicas() if info.is_ready]

    def client(self, info: ReplicaInfo) -> ReplicaClient:
        """The requests to a replica."""
        return ReplicaClient(info, self._key, restart_count=self._settings.restart_count, adapter=self._adapter)

    def statuses(self) -> list[ReplicaStatus]:
        """Rank 0: what each replica that answers replies to :class:`GetInfo`, in the order of their indexes.

        Raises:
            TransferError: one does not answer.
        """
        # Whatever has been published so far: before the first version no replica is connected yet.
        clients = [self.client(info) for info in self.ready()]
        timeout_s = self._settings.timeout_s
        results = call_each(
            {client.index: [partial(client.call, GetInfo(), timeout_s=timeout_s)] for client in clients},
            timeout_s + GRACE_S,
        )
        for failure in results.failures.values():
            raise TransferError(failure)
        return [results.values[client.index][0] for client in clients]

    def call_pending(
        self,
        request: BridgeRequest[R] | Callable[[int], BridgeRequest[R]],
        deadline: float,
        failed: Collection[int] = (),
    ) -> Results[R]:
        """Rank 0 sends a request to every replica of :meth:`pending`; on the other ranks there are no results.

        Args:
            request: the same for all, or made for each index.
            deadline: ``time.monotonic()`` by which each must have replied; at least 1 s is left.
        """
        if self._ranks.rank != 0:
            return Results()
        return self._call(self.pending(failed), request, max(1.0, deadline - time.monotonic()) + 1.0)

    def for_pending(self, call: Callable[[int, ReplicaSender], T], timeout_s: float) -> Results[T]:
        """This rank carries out something for every replica of :meth:`pending`, all at once."""
        calls = {index: [partial(call, index, self._senders[index])] for index in self.pending()}
        return _first(call_each(calls, timeout_s, self._failure_reason))

    def wait_for_another(self, tries: Mapping[tuple[int, int], int]) -> bool:
        """Waits until a replica can be offered the version that is being sent; False if none will come.

        Args:
            tries: how often each start of each replica was offered it: index and restart count.
        """
        while True:
            answer = self._wait_a_slice(tries) if self._ranks.rank == 0 else None
            answer = self._ranks.broadcast_json(answer)
            if answer is not None:
                return bool(answer)

    def _wait_a_slice(self, tries: Mapping[tuple[int, int], int]) -> bool | None:
        """Rank 0: True if a replica can take the version, None if one may still come, False if none will.

        That takes a while when an engine does not answer: the run may not have noticed yet that it is gone.
        """
        if not self._discovery.is_dynamic:
            return False

        def can_take(found: Sequence[ReplicaInfo]) -> bool:
            return any(
                info.is_ready
                and self._serving.get(info.index) != info.restart_count
                and tries.get((info.index, info.restart_count), 0) < TRIES
                for info in found
            )

        found = self._discovery.replicas()
        if not can_take(found) and all(self._serves_or_refuses(info) for info in found):
            return False
        if self._discovery.wait(can_take, SLICE_S):
            return True
        return False if all(info.is_ready for info in self._discovery.replicas()) else None

    def _serves_or_refuses(self, info: ReplicaInfo) -> bool:
        if not info.is_ready or self._serving.get(info.index) == info.restart_count:
            return info.is_ready
        try:
            self.client(info).call(GetInfo(), timeout_s=LOOK_S)
        except TransferError:
            return False
        return True

    def _call(
        self,
        indexes: Collection[int],
        request: BridgeRequest[R] | Callable[[int], BridgeRequest[R]],
        timeout_s: float,
    ) -> Results[R]:
        def call(index: int) -> R:
            made = request if isinstance(request, BridgeRequest) else request(index)
            return self._clients[index].call(made, timeout_s=timeout_s)

        calls = {index: [partial(call, index)] for index in indexes}
        return _first(call_each(calls, timeout_s + GRACE_S, self._failure_reason))

    def _failure_reason(self, index: int) -> str | None:
        return self._discovery.failure_reason(self._clients[index].info)

    # Connecting.

    def _bind(
        self, missing: Sequence[int], spec: TrainerSpec
    ) -> tuple[dict[int, tuple[WorkerSpec, ...]], dict[int, str]]:
        """What the workers of each replica need, on every rank; and, on rank 0, why some do not answer."""
        results = self._call(missing, Bind(trainer=spec), self._settings.timeout_s) if self._ranks.rank == 0 else None
        workers = {} if results is None else {index: found.workers for index, found in results.values.items()}
        shared = self._ranks.broadcast(workers, dict[int, tuple[WorkerSpec, ...]])
        return shared, {} if results is None else results.failures

    def _tree(self, spec: TrainerSpec, workers: Mapping[int, Sequence[WorkerSpec]]) -> dict[int, int]:
        """Of the replicas that are being connected: which one relays to which."""
        if self._settings.relay == "off" or self._adapter is not None:
            return {}
        return parents(spec, {index: found for index, found in workers.items() if index not in self._direct})

    def _connect_relayed(
        self,
        children: Sequence[int],
        tree: Mapping[int, int],
        workers: Mapping[int, Sequence[WorkerSpec]],
        settings: ConnectSettings,
    ) -> dict[int, str]:
        possible = [child for child in children if tree[child] in self._senders]
        roots = {child: self.root(tree[child]) for child in possible}
        results = connect_relayed(
            {self._clients[child]: self._clients[tree[child]] for child in possible},
            {index: self._senders[index].plan for index in roots.values()},
            workers,
            roots,
            settings,
            self._failure_reason,
        )
        self._senders |= results.values
        lost = {
            child: f"Replica {tree[child]}, which would relay to replica {child}, is not connected."
            for child in children
            if child not in roots
        }
        return {**lost, **results.failures}

    def _connect_settings(self, device: torch.device) -> ConnectSettings:
        place = here(device)
        if self._ranks.rank == 0 and self._store is None:
            self._store = serve_store(self._settings.address, self._settings.timeout_s)
        shared = self._ranks.broadcast_json(
            None if self._store is None else {"store": self._store[1], "secret": secrets.token_hex(16)}
        )
        return ConnectSettings(
            address=self._settings.address,
            transport=self._settings.transport,
            mode=self._settings.mode,
            places=tuple(Place(*pair) for pair in self._ranks.all_gather((place.host, place.device))),
            device=device,
            secret=shared["secret"],
            store=shared["store"],
            directory=self._settings.directory,
            timeout_s=self._settings.timeout_s,
            verify=self._settings.verify,
            generation=self._generation,
            adapter=self._adapter,
        )

    def _parent_of(self) -> dict[int, int]:
        """Of each connected replica to which another relays, that one."""
        return {index: sender.parent for index, sender in self._senders.items() if isinstance(sender, RelayedSender)}


def _first(results: Results[list[T]]) -> Results[T]:
    """The one value of each replica."""
    values = {index: found[0] for index, found in results.values.items()}
    return Results(values=values, failures=results.failures)

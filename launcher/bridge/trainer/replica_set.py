"""The replicas as one trainer rank sees them: which there are, which it has joined, which serve the version at hand."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import distributed as dist

from launcher.bridge import link_setup as joining
from launcher.bridge.codec.delta.base import Base
from launcher.bridge.negotiation import TrainerFacts
from launcher.bridge.settings import BridgeSettings
from launcher.bridge.trainer.discovery import ReplicaDiscovery, ReplicaInfo
from launcher.bridge.trainer.parallel import LOOK_S, in_parallel
from launcher.bridge.trainer.rank_group import Ranks
from launcher.bridge.trainer.relay_tree import levels, parents
from launcher.bridge.trainer.replica_client import ReplicaClient
from launcher.bridge.trainer.replica_sender import RelayedSender, ReplicaSender
from launcher.bridge.transport.choose import Place, here
from launcher.common.codec import from_builtins, to_builtins
from launcher.common.errors import LauncherError, TransferError
from launcher.common.keys import bridge_key

T = TypeVar("T")
GOODBYE_TIMEOUT_S = 10.0
ASK_S = 5.0
SLICE_S = 20.0
"""Rank 0 waits for engines in slices: the other ranks wait for it in an operation that may have a deadline."""

TRIES = 2
"""How often one start of a replica is offered the same version."""

GRACE_S = 1.0
"""Over a deadline, for a call to say itself that it is over."""


class Replicas:
    """All trainer ranks make one, and make the same calls in step; rank 0 alone talks to the engines.

    Args:
        adapter: name of the adapter that is sent to them; None for the model's weights.
    """

    def __init__(
        self, settings: BridgeSettings, ranks: Ranks, discovery: ReplicaDiscovery, adapter: str | None = None
    ) -> None:
        self._settings = settings
        self._ranks = ranks
        self._adapter = adapter
        self._discovery = discovery
        self._key = bridge_key(settings.token)
        self.known: list[ReplicaClient] = []
        self.joined: dict[int, ReplicaSender] = {}
        self.served: dict[int, int] = {}
        """Replicas that serve the version that is being sent, or was sent last, with their generations."""

        self.base = Base()
        """What this rank held of the last version that a replica committed; empty unless changes are sent."""

        self.direct: set[int] = set()
        """Replicas that shall get the version at hand from the trainer, whoever would relay to them."""

        self.relayed: set[int] = set()
        """Replicas to which others relay, or should have."""

        self._agreed: TrainerFacts | None = None
        self._store: tuple[dist.TCPStore, str] | None = None
        self._generation = 0

    def refresh(self) -> None:
        """Learns which replicas there are now; what is gone, or was restarted, is not joined any more."""
        found = self.ready() if self._ranks.rank == 0 else []
        now = from_builtins(self._ranks.share(to_builtins(found)), list[ReplicaInfo])
        same = {replica.info: replica for replica in self.known}
        self.known = [same.get(info) or self.client(info) for info in now]
        kept = {replica.index for replica in self.known if replica in same.values()}
        self.drop({index: "" for index in self.joined if index not in kept})
        self.served = {index: generation for index, generation in self.served.items() if index in kept}

    def wait_for_another(self, tries: Mapping[tuple[int, int], int]) -> bool:
        """Waits until a replica can be offered the version that is being sent; False if none will come."""
        while True:
            answer = self._wait_for_another(tries) if self._ranks.rank == 0 else None
            answer = self._ranks.share(answer)
            if answer is not None:
                return bool(answer)

    def ready(self) -> list[ReplicaInfo]:
        """Rank 0: the replicas that answer.

        Raises:
            LauncherError: the discovery fails.
        """
        return [info for info in self._discovery.replicas() if info.is_ready]

    def client(self, info: ReplicaInfo) -> ReplicaClient:
        """The requests to a replica."""
        return ReplicaClient(info, self._key, restart_count=self._settings.restart_count, adapter=self._adapter)

    def _wait_for_another(self, tries: Mapping[tuple[int, int], int]) -> bool | None:
        """Rank 0: waits a while for a replica that can still be offered the version.

        Args:
            tries: how often each start of each replica was offered it.

        Returns:
            True if there is one, None if one may still come, False if none will. That takes a while to say when an
            engine does not answer: the run may not have noticed yet that it is gone.
        """
        if not self._discovery.is_dynamic:
            return False

        def can_take(found: Sequence[ReplicaInfo]) -> bool:
            return any(
                info.is_ready
                and self.served.get(info.index) != info.restart_count
                and tries.get((info.index, info.restart_count), 0) < TRIES
                for info in found
            )

        found = self._discovery.replicas()
        if not can_take(found) and all(self._has_it_or_refuses(info) for info in found):
            return False
        if self._discovery.wait(can_take, SLICE_S):
            return True
        return False if all(info.is_ready for info in self._discovery.replicas()) else None

    def _has_it_or_refuses(self, info: ReplicaInfo) -> bool:
        if not info.is_ready or self.served.get(info.index) == info.restart_count:
            return info.is_ready
        try:
            self.client(info).call("info", timeout_s=LOOK_S)
        except TransferError:
            return False
        return True

    def lacking(self) -> list[ReplicaClient]:
        """Replicas that do not serve the version."""
        return [replica for replica in self.known if self.served.get(replica.index) != replica.info.restart_count]

    def asked(self, failures: Mapping[int, str]) -> list[ReplicaClient]:
        """Replicas that are joined, have not failed, and do not serve the version yet."""
        return [
            replica
            for replica in self.known
            if replica.index in self.joined and replica.index not in failures and replica.index not in self.served
        ]

    def base_of(self, index: int) -> int | None:
        """The version since which a joined replica is sent changes; None if it must get everything."""
        if isinstance(self.joined[index], RelayedSender):
            return None  # A relay passes on what it has, whole.
        committed = self.joined[index].committed
        # A relay passes on what it has, which is a whole version in any case.
        has_base = committed is not None and committed == self.base.version and index not in self.relayed
        return committed if has_base else None

    def ask(
        self,
        route: str,
        body: Mapping[str, Any] | Callable[[ReplicaClient], Mapping[str, Any]],
        deadline: float,
        failures: dict[int, str],
    ) -> dict[int, dict[str, Any]]:
        """Rank 0 asks every joined replica that has not failed; what failed is added to ``failures``.

        Args:
            body: the same for all, or made for each.
        """
        if self._ranks.rank != 0:
            return {}
        timeout_s = max(1.0, deadline - time.monotonic()) + 1.0
        return self.each(
            self.asked(failures),
            lambda replica: replica.call(route, dict(body(replica) if callable(body) else body), timeout_s=timeout_s),
            failures,
            timeout_s + GRACE_S,
        )

    def join_missing(self, facts: TrainerFacts, device: torch.device, failures: dict[int, str]) -> None:
        """Joins replicas that are not joined; all of them anew when the trainer's tensors are not those agreed on.

        Args:
            failures: those that are not to be joined, with reasons; whoever could not be joined is added.
        """
        if facts is not self._agreed:
            self.leave()
            self._agreed = facts
        self.relayed = {index for index, sender in self.joined.items() if isinstance(sender, RelayedSender)}
        missing = [r for r in self.known if r.index not in self.joined and r.index not in failures]
        if not missing:
            return
        self._generation += 1
        bound = self._ranks.share(self._bind(missing, facts, failures))
        settings = self._join_settings(device, bound["secret"])
        tree = self._tree(facts, bound["workers"])
        self.relayed |= tree.keys()
        timeout_s = 2 * self._settings.timeout_s + GRACE_S  # the rendezvous, and the first exchange
        self.joined |= self.each(
            [replica for replica in missing if str(replica.index) in bound["workers"] and replica.index not in tree],
            lambda replica: joining.join(
                replica, facts, bound["workers"][str(replica.index)], bound["store"], settings
            ),
            failures,
            timeout_s,
        )
        for children in levels(tree):
            self._join_relayed(children, tree, bound, settings, failures)
        # A replica counts as joined only if every rank has joined it.
        flags = torch.tensor([int(replica.index in self.joined) for replica in self.known], dtype=torch.int64)
        everywhere = (self._ranks.add_up(flags) == self._ranks.size).tolist()
        for replica, is_joined in zip(self.known, everywhere, strict=True):
            if not is_joined:
                failures.setdefault(replica.index, f"Replica {replica.index} did not join every trainer rank.")
        failures |= self.orphans(failures)
        self.drop(failures)

    def _tree(self, facts: TrainerFacts, workers: Mapping[str, Any]) -> dict[int, int]:
        """Of the replicas that join now: who relays to whom."""
        if self._settings.relay == "off" or self._adapter is not None:
            return {}
        return parents(facts, {int(index): w for index, w in workers.items() if int(index) not in self.direct})

    def _join_relayed(
        self,
        children: Sequence[int],
        tree: Mapping[int, int],
        bound: Mapping[str, Any],
        settings: joining.JoinSettings,
        failures: dict[int, str],
    ) -> None:
        by_index = {replica.index: replica for replica in self.known}

        def join(child: ReplicaClient) -> ReplicaSender:
            parent = tree[child.index]
            if parent not in self.joined:
                raise TransferError(f"Replica {parent}, which would relay to replica {child.index}, has not joined.")
            root = self.root(parent)
            return joining.join_relayed(
                child, by_index[parent], self.joined[root].plan, bound["workers"], root, bound["store"], settings
            )

        timeout_s = self._settings.timeout_s + GRACE_S
        self.joined |= self.each([by_index[index] for index in children], join, failures, timeout_s)

    def root(self, index: int) -> int:
        """The replica that the trainer sends to and from which a joined one gets its weights; itself if it does."""
        while isinstance(sender := self.joined[index], RelayedSender):
            index = sender.parent
        return index

    def orphans(self, failures: Mapping[int, str]) -> dict[int, str]:
        """Replicas to which one relays, at any distance, that has failed or is gone, with that reason."""
        found: dict[int, str] = {}
        while True:
            more = {
                index: f"Replica {sender.parent}, which relays to replica {index}, failed."
                for index, sender in self.joined.items()
                if isinstance(sender, RelayedSender) and index not in failures and index not in found
                if sender.parent not in self.joined or sender.parent in failures or sender.parent in found
            }
            if not more:
                return found
            found |= more

    def answering(self, indexes: Collection[int]) -> list[int]:
        """Rank 0: those of some replicas that say something when they are asked for nothing."""
        asked = [replica for replica in self.known if replica.index in indexes]
        timeout_s = min(ASK_S, self._settings.timeout_s)
        return sorted(self.each(asked, lambda replica: replica.call("info", timeout_s=timeout_s), {}, timeout_s))

    def _bind(
        self, missing: Sequence[ReplicaClient], facts: TrainerFacts, failures: dict[int, str]
    ) -> dict[str, Any] | None:
        """Rank 0 asks what the workers need, and says where they meet."""
        if self._ranks.rank != 0:
            return None
        timeout_s = self._settings.timeout_s
        if self._store is None:
            self._store = joining.serve_store(self._settings.address, timeout_s)
        found = self.each(
            missing, lambda replica: joining.bind(replica, facts, timeout_s), failures, timeout_s + GRACE_S
        )
        return {
            "store": self._store[1],
            "secret": secrets.token_hex(16),
            "workers": {str(index): found[index] for index in sorted(found)},
        }

    def _join_settings(self, device: torch.device, secret: str) -> joining.JoinSettings:
        place = here(device)
        return joining.JoinSettings(
            address=self._settings.address,
            transport=self._settings.transport,
            mode=self._settings.mode,
            places=tuple(Place(*pair) for pair in self._ranks.gather_pairs((place.host, place.device))),
            device=device,
            secret=secret,
            directory=self._settings.directory,
            timeout_s=self._settings.timeout_s,
            verify=self._settings.verify,
            generation=self._generation,
            adapter=self._adapter,
        )

    def drop(self, failures: Mapping[int, str]) -> None:
        """Forgets replicas that failed; they are asked to join again at the next version."""
        for index in (*failures, *self.orphans(failures)):
            sender = self.joined.pop(index, None)
            if sender is not None:
                sender.close()

    def leave(self) -> None:
        """Says goodbye to all of them."""
        self.served = {}
        self.ask("disconnect", {}, time.monotonic() + min(GOODBYE_TIMEOUT_S, self._settings.timeout_s), {})
        for sender in self.joined.values():
            sender.close()
        self.joined = {}
        self.base.clear()
        self._agreed = None
        self._store = None

    def each(
        self,
        replicas: Sequence[ReplicaClient],
        call: Callable[[ReplicaClient], T],
        failures: dict[int, str],
        timeout_s: float,
    ) -> dict[int, T]:
        """The call's result for each replica, all at once; what fails, or has no end in time, is added to ``failures``.

        A call to a replica of which the run says that it is lost is not waited for.
        """

        def attempt(replica: ReplicaClient) -> T | LauncherError:
            why_stop = partial(self._discovery.failure_reason, replica.info)
            try:
                return in_parallel([partial(call, replica)], timeout_s=timeout_s, why_stop=why_stop)[0]
            except LauncherError as error:
                return error

        results = in_parallel([partial(attempt, replica) for replica in replicas])
        found: dict[int, T] = {}
        for replica, result in zip(replicas, results, strict=True):
            if isinstance(result, LauncherError):
                failures.setdefault(replica.index, str(result))
            else:
                found[replica.index] = result
        return found

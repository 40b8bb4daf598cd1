"""Versions of one thing on their way to the replicas: of the model's weights, or of one adapter."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from launcher.bridge.adapter import Adapter
from launcher.bridge.negotiation import TrainerFacts
from launcher.bridge.plan import Location
from launcher.bridge.settings import ROUND_BYTES, BridgeSettings
from launcher.bridge.trainer.discovery import Commit, ReplicaDiscovery
from launcher.bridge.trainer.module_state import Weight, described, manifest, shardings
from launcher.bridge.trainer.rank_group import Ranks
from launcher.bridge.trainer.replica_set import Replicas
from launcher.bridge.trainer.report import UpdateReport
from launcher.bridge.trainer.transaction import Offer, Outcome
from launcher.common.errors import TransferError

logger = logging.getLogger(__name__)

OnPhase = Callable[[str, str], None]
"""Called with the name of a phase of the start-up and ``begin`` or ``end``: ``groups``, then ``first sync``."""


class Channel:
    """All trainer ranks make one, and make the same calls in step.

    Args:
        adapter: what is sent; None for the model's weights.
    """

    def __init__(
        self,
        settings: BridgeSettings,
        ranks: Ranks,
        discovery: ReplicaDiscovery,
        adapter: Adapter | None = None,
        on_phase: OnPhase | None = None,
    ) -> None:
        self._settings = settings
        self._ranks = ranks
        self.adapter = adapter
        self._discovery = discovery
        self._on_phase = on_phase
        self.replicas = Replicas(settings, ranks, discovery, None if adapter is None else adapter.name)
        self.held: Sequence[Weight] = ()
        """What was published last."""

        self._known: tuple[object, TrainerFacts] | None = None
        self._locations: tuple[Location, ...] | None = None
        self._device = torch.device("cpu")
        self.version: int | None = None
        """The last version that was published; None before the first."""

    def publish(
        self,
        held: Sequence[Weight],
        only: frozenset[str] | None,
        version: int,
        read: Callable[[], None] = lambda: None,
        *,
        releases: bool = True,
    ) -> UpdateReport:
        """Offers a version until enough replicas serve it.

        Args:
            held: what this rank holds.
            only: names of the storages that are sent; None for all.
            version: larger than every one before.
            read: called once the trainer may write its tensors again.
            releases: a restarted engine that waits for weights need not wait for others after these.

        Raises:
            TransferError: fewer replicas than wanted serve it.
        """
        self.replicas.served = {}
        self.held = held
        report = self._bring(held, only, version, releases)
        self._mark("first sync", "end")
        self.version = version
        # Not before: a replica that comes back is sent the weights once more.
        read()
        return report

    def rejoin(self, held: Sequence[Weight], *, releases: bool = True) -> int:
        """Gives the last version to replicas that lack it; how many took it now.

        Raises:
            TransferError: fewer replicas than wanted serve it, and no other comes.
        """
        if self.version is None:
            return 0
        replicas = self.replicas
        before = dict(replicas.served)
        replicas.refresh()
        if replicas.lacking() or len(replicas.served) < self._settings.wanted_replicas:
            self._bring(held, None, self.version, releases)
        return sum(before.get(index) != generation for index, generation in replicas.served.items())

    def close(self) -> None:
        """Says goodbye; the replicas go on serving what they have."""
        self.replicas.leave()

    def _bring(self, held: Sequence[Weight], only: frozenset[str] | None, version: int, releases: bool) -> UpdateReport:
        """Offers a version to all replicas that lack it, again to those that come back, until enough serve it."""
        begin = time.monotonic()
        self._device = device_of(held)
        replicas, wanted = self.replicas, self._settings.wanted_replicas
        replicas.direct = set()
        given_up: dict[int, str] = {}
        tries: dict[tuple[int, int], int] = {}
        total_bytes, compared, changed, pause_s = 0, 0, 0, 0.0
        while True:
            replicas.refresh()
            for replica in replicas.known:
                if replica.index not in replicas.served:
                    tries[replica.index, replica.info.restart_count] = (
                        tries.get((replica.index, replica.info.restart_count), 0) + 1
                    )
            outcome = self._offer(held, only, version, releases, given_up)
            total_bytes, pause_s = total_bytes + outcome.bytes, max(pause_s, outcome.pause_s)
            compared, changed = compared + outcome.compared, changed + outcome.changed
            if outcome.again:
                logger.warning("version %d: %s", version, " ".join(outcome.failures[i] for i in sorted(outcome.again)))
                replicas.direct |= outcome.again
                given_up = {i: text for i, text in outcome.failures.items() if i not in outcome.again}
                continue
            given_up = {}
            if len(replicas.served) >= wanted:
                break
            if not replicas.wait_for_another(tries):
                known = len(replicas.known)
                raise too_few(version, len(replicas.served), known, wanted, outcome.failures)
        for text in outcome.failures.values():
            logger.warning("version %d: %s", version, text)
        seconds = time.monotonic() - begin
        density = changed / compared if compared else None
        if self._ranks.rank == 0:
            commit = Commit(
                version=version,
                adapter=None if self.adapter is None else self.adapter.name,
                replicas=replicas.served,
                seconds=seconds,
                bytes=total_bytes,
                density=density,
            )
            self._discovery.record(commit)
        # Whoever has returned from here finds the pool up to date.
        seconds = float(self._ranks.share(seconds))
        return UpdateReport(
            version=version,
            seconds=seconds,
            bytes=total_bytes,
            density=density,
            pause_s=pause_s,
            replicas=len(replicas.served),
        )

    def _offer(
        self,
        held: Sequence[Weight],
        only: frozenset[str] | None,
        version: int,
        releases: bool,
        given_up: Mapping[int, str],
    ) -> Outcome:
        """Offers a version once to every replica that lacks it, after joining those that are not joined."""
        failures = dict(given_up)
        joined_before = set(self.replicas.joined)
        self._mark("groups", "begin")
        self.replicas.join_missing(self._facts(held), self._device, failures)
        self._mark("groups", "end")
        self._mark("first sync", "begin")
        if set(self.replicas.joined) - joined_before:
            only = None  # whoever is new knows nothing of the other tensors
        offer = Offer(
            version=version,
            held=held,
            only=only,
            releases=releases,
            device=self._device,
            replicas=self.replicas,
            ranks=self._ranks,
            settings=self._settings,
        )
        return offer.make(failures)

    def _mark(self, phase: str, state: str) -> None:
        """A phase of the start-up begins or ends; nothing after the first version of the model's weights."""
        if self._on_phase is not None and self.adapter is None and self.version is None:
            self._on_phase(phase, state)

    def _facts(self, held: Sequence[Weight]) -> TrainerFacts:
        """What the engines must know; the same object as long as the tensors are, and lie, as before."""
        description = (self._device, described(held))
        if self._known is None or self._known[0] != description:
            if self._locations is None:
                pairs = self._ranks.gather_pairs(self._settings.location)
                self._locations = tuple(Location(node=node, gpu=gpu) for node, gpu in pairs)
            facts = TrainerFacts(
                manifest=manifest(held),
                shardings=shardings(held, self._ranks.size),
                locations=self._locations,
                round_bytes=self._settings.round_bytes or ROUND_BYTES[self._device.type],
                adapter=None if self.adapter is None else self.adapter.config,
            )
            self._known = (description, facts)
        return self._known[1]


def too_few(version: int, served: int, known: int, wanted: int, failures: Mapping[int, str]) -> TransferError:
    """The error when not enough replicas took a version."""
    return TransferError(
        f"Version {version} was taken by {served} of {known} replicas, but {wanted} must: {' '.join(failures.values())}"
    )


def device_of(held: Sequence[Weight]) -> torch.device:
    """Where the weights are: on one GPU, or on the CPU."""
    return next((weight.local.device for weight in held if weight.local.is_cuda), torch.device("cpu"))

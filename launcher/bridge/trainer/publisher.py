"""Versions of one thing on their way to the replicas: of the model's weights, or of one adapter."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from difflib import get_close_matches

import torch

from launcher.bridge.plan import Location
from launcher.bridge.protocol import TrainerSpec
from launcher.bridge.settings import ROUND_BYTES, BridgeSettings
from launcher.bridge.trainer.adapter import Adapter
from launcher.bridge.trainer.agreement import Call
from launcher.bridge.trainer.description import Description, Union, decoded, digest_of, encoded, union
from launcher.bridge.trainer.discovery import CommitRecord, ReplicaDiscovery
from launcher.bridge.trainer.module_state import (
    Cuttings,
    Weight,
    compare_replicas,
    cuttings,
    described,
    description,
    shards,
)
from launcher.bridge.trainer.rank_group import RankGroup
from launcher.bridge.trainer.replica_set import ReplicaSet
from launcher.bridge.trainer.transaction import UpdateTransaction
from launcher.bridge.trainer.update import UpdateReport
from launcher.common.errors import BridgeError

logger = logging.getLogger(__name__)

OnPhase = Callable[[str, str], None]
"""Called with the name of a phase of the start-up and ``begin`` or ``end``: ``groups``, then ``first sync``."""


class WeightPublisher:
    """All trainer ranks make one, and call the same methods in the same order.

    Args:
        adapter: what is sent; None for the model's weights.
        on_phase: for the model's first version; None on all ranks but 0.
    """

    def __init__(
        self,
        settings: BridgeSettings,
        ranks: RankGroup,
        discovery: ReplicaDiscovery,
        adapter: Adapter | None = None,
        on_phase: OnPhase | None = None,
    ) -> None:
        self._settings = settings
        self._ranks = ranks
        self._discovery = discovery
        self._on_phase = on_phase
        self.adapter = adapter
        self._replicas = ReplicaSet(settings, ranks, discovery, None if adapter is None else adapter.name)
        self._described: tuple[object, Description, str] | None = None
        """What this rank sent last: in a form that is quick to compare, for the other ranks, and the digest of that."""

        self._cuttings: Cuttings = {}

        self._spec: tuple[object, TrainerSpec] | None = None
        """What all ranks sent last, in a form that is quick to compare, and its spec."""

        self._locations: tuple[Location, ...] | None = None
        self.held: Sequence[Weight] = ()
        """What was published last."""

        self.version: int | None = None
        """The last version that was published; None before the first."""

    @property
    def replicas(self) -> ReplicaSet:
        """To read; nobody else changes it."""
        return self._replicas

    def publish(
        self,
        held: Sequence[Weight],
        names: Sequence[str] | None,
        version: int,
        read: Callable[[], None] = lambda: None,
        *,
        releases: bool = True,
    ) -> UpdateReport:
        """Offers a version until enough replicas serve it.

        Args:
            held: what this rank holds.
            names: of the tensors that are sent; None for all.
            version: larger than every one before.
            read: called once the trainer may write its tensors again.
            releases: a restarted engine that waits for weights need not wait for others after these.

        Raises:
            BridgeError, TransferError: as for :meth:`_agree`; or fewer replicas than wanted serve it.
            ValueError: no rank holds a tensor of that name.
        """
        called = f"publish(version={version})"
        if self.adapter is not None:
            called = f"publish_adapter({self.adapter.name!r}, version={version})"
        elif names is not None:
            called = f"publish(version={version}, names={sorted(names)})"
        spec = self._agree(called, held)
        only = None if names is None else _owners(spec, names)
        self._replicas.begin_version()
        self.held = held
        report = self._deliver(held, only, version, releases, spec)
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
        spec = self._agree(f"rejoin() at version {self.version}", held)
        replicas = self._replicas
        before = dict(replicas.serving)
        replicas.refresh()
        if replicas.lacking() or len(replicas.serving) < self._settings.wanted_replicas:
            self._deliver(held, None, self.version, releases, spec)
        return sum(before.get(index) != count for index, count in replicas.serving.items())

    def close(self) -> None:
        """Disconnects from the replicas, which go on serving what they have."""
        self._replicas.leave()

    def _deliver(
        self,
        held: Sequence[Weight],
        only: frozenset[str] | None,
        version: int,
        releases: bool,
        spec: TrainerSpec,
    ) -> UpdateReport:
        begin = time.monotonic()
        device = device_of(held)
        result = UpdateTransaction(
            version=version,
            shards=shards(held, self._cuttings, spec.placement_of),
            only=only,
            releases=releases,
            spec=spec,
            device=device,
            replicas=self._replicas,
            ranks=self._ranks,
            settings=self._settings,
            mark=self._mark,
        ).run()
        for reason in result.failures.values():
            logger.warning("version %d: %s", version, reason)
        seconds, traffic = time.monotonic() - begin, result.traffic
        density = traffic.changed / traffic.compared if traffic.compared else None
        if self._ranks.rank == 0:
            self._discovery.record(
                CommitRecord(
                    version=version,
                    adapter=None if self.adapter is None else self.adapter.name,
                    replicas=self._replicas.serving,
                    seconds=seconds,
                    bytes=traffic.bytes,
                    density=density,
                )
            )
        # A collective, so that whichever rank returns from here finds the commit recorded.
        seconds = float(self._ranks.broadcast_json(seconds))
        return UpdateReport(
            version=version,
            seconds=seconds,
            bytes=traffic.bytes,
            density=density,
            pause_s=result.pause_s,
            replicas=len(self._replicas.serving),
        )

    def _mark(self, phase: str, state: str) -> None:
        """A phase of the start-up begins or ends; nothing after the first version of the model's weights."""
        if self._on_phase is not None and self.adapter is None and self.version is None:
            self._on_phase(phase, state)

    def _agree(self, call: str, held: Sequence[Weight]) -> TrainerSpec:
        """What the engines must know, once all ranks make the same call; the same object as long as the tensors are,
        and lie, as before on every rank.

        Raises:
            BridgeError: on every rank: ranks disagree about a tensor, or hold other values of one.
            TransferError: on every rank: ranks are missing, or make another call.
        """
        error, digest = "", ""
        own: Description = ()
        try:
            own, digest = self._describe(held)
        except BridgeError as problem:
            error = str(problem)
        contents = self._ranks.meet(Call(name=call, content=digest, error=error))
        device = device_of(held)
        key = (device, contents)
        if self._spec is None or self._spec[0] != key:
            self._spec = None
            shared = self._ranks.exchange(encoded(own), contents)
            found = union([(decoded(shared[digest]), ranks) for digest, ranks in contents.items()], self._ranks.size)
            self._cuttings = cuttings(own, self._ranks.rank)
            compare_replicas(shards(held, self._cuttings, found.placements), found, self._ranks)
            self._spec = (key, self._spec_of(found, device))
        return self._spec[1]

    def _describe(self, held: Sequence[Weight]) -> tuple[Description, str]:
        key = described(held)
        if self._described is None or self._described[0] != key:
            own = description(held, is_adapter=self.adapter is not None)
            self._described = (key, own, digest_of(own))
        return self._described[1:]

    def _spec_of(self, found: Union, device: torch.device) -> TrainerSpec:
        if self._locations is None:
            pairs = self._ranks.all_gather(self._settings.location)
            self._locations = tuple(Location(node=node, gpu=gpu) for node, gpu in pairs)
        return TrainerSpec.of(
            manifest=found.manifest,
            placements=found.placements,
            locations=self._locations,
            round_bytes=self._settings.round_bytes or ROUND_BYTES[device.type],
            adapter=None if self.adapter is None else self.adapter.config,
        )


def _owners(spec: TrainerSpec, names: Sequence[str]) -> frozenset[str]:
    """The names under which some tensors travel: a tied weight's owner."""
    owners = {entry.name: entry.alias_of or entry.name for entry in spec.manifest}
    if unknown := [name for name in names if name not in owners]:
        near = get_close_matches(unknown[0], owners, 1) or list(owners)[:1]
        raise ValueError(f"No trainer rank has a weight named {unknown[0]!r}; there are {len(owners)}, such as {near}.")
    return frozenset(owners[name] for name in names)


def device_of(held: Sequence[Weight]) -> torch.device:
    """Where the weights are: on one GPU, or on the CPU."""
    return next(
        (part.tensor.device for weight in held for part in weight.parts if part.tensor.is_cuda), torch.device("cpu")
    )

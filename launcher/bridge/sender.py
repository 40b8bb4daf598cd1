"""The trainer's side: joins the engines once, then publishes one version after another."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from launcher.bridge import collective, startup
from launcher.bridge.agreement import TrainerFacts
from launcher.bridge.background import Publisher, Update
from launcher.bridge.membership import too_few
from launcher.bridge.offer import Offer, Outcome
from launcher.bridge.parallel import in_parallel
from launcher.bridge.replicas import Replicas
from launcher.bridge.report import UpdateReport
from launcher.bridge.reshard import Location
from launcher.bridge.settings import ROUND_BYTES, BridgeSettings, settings_from_environment
from launcher.bridge.state import Weight, described, manifest, shardings, weights
from launcher.inference.client import wait_ready

logger = logging.getLogger(__name__)


def connect(settings: BridgeSettings | None = None, *, ready_timeout_s: float = 600.0) -> Bridge:
    """The bridge of the run that this process is a trainer rank of. Every trainer rank calls it.

    Rank 0 waits until all engines are healthy.

    Args:
        settings: for use without the launcher; from the environment if None.
        ready_timeout_s: longest wait for the engines.

    Raises:
        ControlError: an engine is not ready in time.
        LauncherError: this process is not a trainer of a run.
    """
    if settings is None:
        settings = settings_from_environment()
        if collective.world()[0] == 0:
            with startup.phase("wait for engines", when=True):
                wait_ready(ready_timeout_s)
    bridge = Bridge(settings)
    bridge.begin()
    return bridge


class Bridge:
    """Publishes versions of one module's weights to every engine. All trainer ranks make the same calls in step.

    Each trainer rank sends its own shards straight to the engine workers that need them. A version is received beside
    the live weights, compared end to end, and only then written; a replica that fails on the way keeps what it has.
    """

    def __init__(self, settings: BridgeSettings) -> None:
        self._settings = settings
        self._ranks = collective.Ranks(settings.address, settings.timeout_s)
        self._rank, self._world_size = self._ranks.rank, self._ranks.size
        self._publisher = Publisher()
        self._replicas = Replicas(settings, self._ranks)
        self._known: tuple[object, TrainerFacts] | None = None
        self._locations: tuple[Location, ...] | None = None
        self._device = torch.device("cpu")
        self.version: int | None = None
        """The last version that was published; None before the first."""

    def publish(self, model: nn.Module, version: int, *, names: Sequence[str] | None = None) -> UpdateReport:
        """Sends the module's weights; when it returns, every engine serves them.

        Args:
            model: plain or sharded with FSDP2 or tensor parallelism.
            version: larger than every one published before.
            names: only these weights, under their names in the module's state dict; all of them if None.

        Raises:
            TransferError: fewer replicas than ``min_replicas`` took the version; the others serve it all the same. A
                replica that did not take it goes on serving what it had, and is asked to join again the next time.
            ValueError: a name is not in the module.
        """
        self._publisher.drain()
        held = weights(model)
        return self._publish(held, _owners(held, names), version, lambda: None)

    def publish_async(self, model: nn.Module, version: int, *, names: Sequence[str] | None = None) -> Update:
        """Begins to send the module's weights and returns; the next forward and backward may go on meanwhile.

        Nothing may write the weights before :meth:`Update.wait_read` returns; :meth:`guard` sees to that for an
        optimizer. Updates are carried out in order. Every trainer rank makes the same calls.

        Args:
            model: as for :meth:`publish`.
            version: as for :meth:`publish`.
            names: as for :meth:`publish`.

        Raises:
            TransferError: the update before has failed, and its result has not been asked for.
            ValueError: a name is not in the module.
        """
        held = weights(model)
        only = _owners(held, names)
        # What the optimizer has enqueued comes before what the thread reads.
        device = _device(held)
        written = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

        def publish(read: Callable[[], None]) -> UpdateReport:
            if written is not None:
                written.synchronize()
            return self._publish(held, only, version, read)

        return self._publisher.submit(version, publish)

    def guard(self, optimizer: torch.optim.Optimizer) -> None:
        """From now on each of the optimizer's steps first waits until no update reads the weights any more."""
        optimizer.register_step_pre_hook(lambda *_: self._publisher.wait_read())

    def _publish(
        self, held: Sequence[Weight], only: frozenset[str] | None, version: int, read: Callable[[], None]
    ) -> UpdateReport:
        self._replicas.served = {}
        report = self._bring(held, only, version)
        startup.first_sync("end", when=self._rank == 0 and self.version is None)
        self.version = version
        # Not before: a replica that comes back is sent the weights once more.
        read()
        return report

    def rejoin(self, model: nn.Module) -> int:
        """Gives the last version to replicas that came back since, and waits until enough replicas serve it.

        Costs a few small messages if there is nothing to do. Every trainer rank calls it, with the weights as they were
        published last: at the start of a step, and whenever no engine is left to answer.

        Args:
            model: as it was given to :meth:`publish`.

        Returns:
            How many replicas took the version now.

        Raises:
            TransferError: fewer replicas than ``min_replicas`` serve it, and no other comes.
        """
        self._publisher.drain()
        if self.version is None:
            return 0
        replicas = self._replicas
        before = dict(replicas.served)
        replicas.refresh()
        if replicas.lacking() or len(replicas.served) < replicas.members.min_replicas:
            self._bring(weights(model), None, self.version)
        return sum(before.get(index) != generation for index, generation in replicas.served.items())

    def begin(self) -> None:
        """Tells the run that weights will come; every trainer rank calls it."""
        if self._rank == 0:
            self._replicas.members.connected()

    def _bring(self, held: Sequence[Weight], only: frozenset[str] | None, version: int) -> UpdateReport:
        """Offers a version to all replicas that lack it, again to those that come back, until enough serve it."""
        begin = time.monotonic()
        self._device = _device(held)
        replicas, members = self._replicas, self._replicas.members
        tries: dict[tuple[int, int], int] = {}
        total_bytes, compared, changed, pause_s = 0, 0, 0, 0.0
        while True:
            replicas.refresh()
            for replica in replicas.known:
                if replica.index not in replicas.served:
                    tries[replica.index, replica.generation] = tries.get((replica.index, replica.generation), 0) + 1
            outcome = self._offer(held, only, version)
            total_bytes, pause_s = total_bytes + outcome.bytes, max(pause_s, outcome.pause_s)
            compared, changed = compared + outcome.compared, changed + outcome.changed
            if len(replicas.served) >= members.min_replicas:
                break
            if not replicas.wait_for_another(tries):
                known = len(replicas.known)
                raise too_few(version, len(replicas.served), known, members.min_replicas, outcome.failures)
        for text in outcome.failures.values():
            logger.warning("version %d: %s", version, text)
        seconds = time.monotonic() - begin
        density = changed / compared if compared else None
        if self._rank == 0:
            fields = {"seconds": seconds, "bytes": total_bytes, "density": density}
            members.published(version, replicas.served, fields)
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

    def _offer(self, held: Sequence[Weight], only: frozenset[str] | None, version: int) -> Outcome:
        """Offers a version once to every replica that lacks it, after joining those that are not joined."""
        failures: dict[int, str] = {}
        joined_before = set(self._replicas.joined)
        is_first = self._rank == 0 and self.version is None
        with startup.phase("groups", when=is_first):
            self._replicas.join_missing(self._facts(held), self._device, failures)
        startup.first_sync("begin", when=is_first)
        if set(self._replicas.joined) - joined_before:
            only = None  # whoever is new knows nothing of the other tensors
        offer = Offer(
            version=version,
            held=held,
            only=only,
            device=self._device,
            replicas=self._replicas,
            ranks=self._ranks,
            settings=self._settings,
        )
        return offer.make(failures)

    def info(self) -> list[dict[str, Any]]:
        """What each healthy replica says of itself: its version, its state. Rank 0 only; empty elsewhere.

        Raises:
            ControlError: the run's control service does not answer.
            TransferError: a replica does not answer.
        """
        if self._rank != 0:
            return []
        timeout_s = self._settings.timeout_s
        # Whatever has been published so far: before the first version no replica is joined yet.
        members = self._replicas.members
        replicas = [members.client(known) for known in members.ready()]
        return in_parallel([partial(replica.call, "info", timeout_s=timeout_s) for replica in replicas])

    def close(self) -> None:
        """Says goodbye, after updates that are on their way; the engines go on serving what they have. Safe to call
        twice.
        """
        self._publisher.close()
        self._replicas.leave()
        self._replicas.members.close()

    def _facts(self, held: Sequence[Weight]) -> TrainerFacts:
        """What the engines must know; the same object as long as the tensors are, and lie, as before."""
        description = (self._device, described(held))
        if self._known is None or self._known[0] != description:
            if self._locations is None:
                pairs = self._ranks.gather_pairs(self._settings.location)
                self._locations = tuple(Location(node=node, gpu=gpu) for node, gpu in pairs)
            facts = TrainerFacts(
                manifest=manifest(held),
                shardings=shardings(held, self._world_size),
                locations=self._locations,
                round_bytes=self._settings.round_bytes or ROUND_BYTES[self._device.type],
            )
            self._known = (description, facts)
        return self._known[1]


def _device(held: Sequence[Weight]) -> torch.device:
    """Where the weights are: on one GPU, or on the CPU."""
    return next((weight.local.device for weight in held if weight.local.is_cuda), torch.device("cpu"))


def _owners(held: Sequence[Weight], names: Sequence[str] | None) -> frozenset[str] | None:
    """The names under which the storages of some weights travel: a tied weight's owner."""
    if names is None:
        return None
    by_name = {weight.name: weight for weight in held}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise ValueError(f"The module has no weight named {unknown[0]!r}; it has {len(held)}, first: {held[0].name!r}.")
    return frozenset(by_name[name].alias_of or name for name in names)

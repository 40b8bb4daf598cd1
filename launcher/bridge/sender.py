"""The trainer's side: joins the engines once, then publishes one version after another."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch import nn

from launcher.bridge import collective, joining, startup
from launcher.bridge.agreement import TrainerFacts
from launcher.bridge.background import Publisher, Update
from launcher.bridge.membership import Known, Membership, too_few
from launcher.bridge.parallel import in_parallel
from launcher.bridge.replica import ReplicaClient
from launcher.bridge.reshard import Location
from launcher.bridge.sending import ReplicaSender, Sent
from launcher.bridge.settings import ROUND_BYTES, BridgeSettings, settings_from_environment
from launcher.bridge.state import Weight, described, manifest, shardings, weights
from launcher.bridge.transport.choose import Place, here
from launcher.errors import LauncherError
from launcher.inference.client import wait_ready

logger = logging.getLogger(__name__)

T = TypeVar("T")
MASK = (1 << 64) - 1
GOODBYE_TIMEOUT_S = 10.0
GRACE_S = 1.0
"""Over a deadline, for a call to say itself that it is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """What one update did; the same on every rank."""

    version: int
    seconds: float
    """From the call until every replica served the version; includes joining, the first time."""

    bytes: int
    """Bytes sent by all trainer ranks to all replicas."""

    pause_s: float
    """Longest time for which a replica did not decode."""

    replicas: int
    """Replicas that serve the version."""


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
        self._members = Membership(settings)
        self._replicas: list[ReplicaClient] = []
        self._joined: dict[int, ReplicaSender] = {}
        self._served: dict[int, int] = {}
        """Replicas that serve the version that is being sent, or was sent last, with their generations."""

        self._agreed: TrainerFacts | None = None
        self._known: tuple[object, TrainerFacts] | None = None
        self._locations: tuple[Location, ...] | None = None
        self._store: tuple[dist.TCPStore, str] | None = None
        self._generation = 0
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
        self._served = {}
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
        before = dict(self._served)
        self._refresh()
        lacking = [replica for replica in self._replicas if self._served.get(replica.index) != replica.generation]
        if lacking or len(self._served) < self._members.min_replicas:
            self._bring(weights(model), None, self.version)
        return sum(before.get(index) != generation for index, generation in self._served.items())

    def begin(self) -> None:
        """Tells the run that weights will come; every trainer rank calls it."""
        if self._rank == 0:
            self._members.connected()

    def _bring(self, held: Sequence[Weight], only: frozenset[str] | None, version: int) -> UpdateReport:
        """Offers a version to all replicas that lack it, again to those that come back, until enough serve it."""
        begin = time.monotonic()
        self._device = _device(held)
        failures: dict[int, str] = {}
        tries: dict[tuple[int, int], int] = {}
        total_bytes, pause_s = 0, 0.0
        while True:
            self._refresh()
            for replica in self._replicas:
                if replica.index not in self._served:
                    tries[replica.index, replica.generation] = tries.get((replica.index, replica.generation), 0) + 1
            failures, sent_bytes, paused_s = self._round(held, only, version)
            total_bytes, pause_s = total_bytes + sent_bytes, max(pause_s, paused_s)
            if len(self._served) >= self._members.min_replicas:
                break
            if not self._wait_for_another(tries):
                known = len(self._replicas)
                raise too_few(version, len(self._served), known, self._members.min_replicas, failures)
        for text in failures.values():
            logger.warning("version %d: %s", version, text)
        seconds = time.monotonic() - begin
        if self._rank == 0:
            self._members.published(version, self._served, {"seconds": seconds, "bytes": total_bytes})
        # Whoever has returned from here finds the pool up to date.
        seconds = float(self._ranks.share(seconds))
        return UpdateReport(
            version=version, seconds=seconds, bytes=total_bytes, pause_s=pause_s, replicas=len(self._served)
        )

    def _refresh(self) -> None:
        """Learns which replicas there are now; what is gone, or was restarted, is not joined any more."""
        found = self._members.ready() if self._rank == 0 else []
        shared = self._ranks.share([[known.replica, known.generation, known.url] for known in found])
        now = [Known(replica=index, generation=generation, url=url) for index, generation, url in shared]
        same = {(replica.index, replica.generation, replica.url): replica for replica in self._replicas}
        self._replicas = [
            same.get((known.replica, known.generation, known.url)) or self._members.client(known) for known in now
        ]
        kept = {replica.index for replica in self._replicas if replica in same.values()}
        self._drop({index: "" for index in self._joined if index not in kept})
        self._served = {index: generation for index, generation in self._served.items() if index in kept}

    def _wait_for_another(self, tries: Mapping[tuple[int, int], int]) -> bool:
        """Waits until a replica can be offered the version that is being sent; False if none will come."""
        while True:
            answer = self._members.wait_for_another(self._served, tries) if self._rank == 0 else None
            answer = self._ranks.share(answer)
            if answer is not None:
                return bool(answer)

    def _round(
        self, held: Sequence[Weight], only: frozenset[str] | None, version: int
    ) -> tuple[dict[int, str], int, float]:
        """Offers a version once to every replica that lacks it; failures, bytes sent, and the longest pause."""
        failures: dict[int, str] = {}
        joined_before = set(self._joined)
        is_first = self._rank == 0 and self.version is None
        with startup.phase("groups", when=is_first):
            self._join_missing(self._facts(held), failures)
        startup.first_sync("begin", when=is_first)
        if set(self._joined) - joined_before:
            only = None  # whoever is new knows nothing of the other tensors
        deadline = time.monotonic() + self._settings.timeout_s
        body = {"version": version, "names": None if only is None else sorted(only)}
        self._ask("prepare", body, deadline, failures)
        for index in self._ranks.share(sorted(failures)):
            failures.setdefault(index, f"Replica {index} failed; rank 0 says why.")
        self._drop(failures)
        sent = self._send({weight.name: weight.local for weight in held if weight.alias_of is None}, only, deadline)
        sums, total_bytes = self._add_up(sent, failures)
        vote = {"version": version, "timeout_s": max(0.1, deadline - time.monotonic())}
        votes = self._ask("vote", vote, deadline, failures)
        self._compare(votes, sums, failures)
        commit = {"version": version, "reset_prefix_cache": self._settings.reset_prefix_cache}
        answers = self._ask("commit", commit, time.monotonic() + self._settings.timeout_s, failures)
        words = {
            "failures": {str(index): text for index, text in failures.items()},
            "pause_s": max((float(answer["pause_s"]) for answer in answers.values()), default=0.0),
            "served": sorted(answers),
        }
        words = self._ranks.share(words)
        failures = {int(index): text for index, text in words["failures"].items()}
        self._drop(failures)
        generations = {replica.index: replica.generation for replica in self._replicas}
        self._served |= {index: generations[index] for index in words["served"]}
        return failures, total_bytes, float(words["pause_s"])

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
        replicas = [self._members.client(known) for known in self._members.ready()]
        return in_parallel([partial(replica.call, "info", timeout_s=timeout_s) for replica in replicas])

    def close(self) -> None:
        """Says goodbye, after updates that are on their way; the engines go on serving what they have. Safe to call
        twice.
        """
        self._publisher.close()
        self._leave()
        self._members.close()

    def _leave(self) -> None:
        self._served = {}
        self._ask("disconnect", {}, time.monotonic() + min(GOODBYE_TIMEOUT_S, self._settings.timeout_s), {})
        for sender in self._joined.values():
            sender.close()
        self._joined = {}
        self._agreed = None
        self._store = None

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

    def _join_missing(self, facts: TrainerFacts, failures: dict[int, str]) -> None:
        """Joins replicas that are not joined; all of them anew when the trainer's tensors are not those agreed on."""
        if facts is not self._agreed:
            self._leave()
            self._agreed = facts
        missing = [replica for replica in self._replicas if replica.index not in self._joined]
        if not missing:
            return
        self._generation += 1
        bound: dict[str, Any] = {}
        if self._rank == 0:
            if self._store is None:
                self._store = joining.serve_store(self._settings.address, self._settings.timeout_s)
            timeout_s = self._settings.timeout_s
            found = _each(
                missing,
                lambda replica: joining.bind(replica, facts, timeout_s),
                failures,
                timeout_s + GRACE_S,
                self._members.why_gone,
            )
            bound = {
                "store": self._store[1],
                "secret": secrets.token_hex(16),
                "workers": {str(index): found[index] for index in sorted(found)},
            }
        bound = self._ranks.share(bound)
        place = here(self._device)
        settings = joining.JoinSettings(
            address=self._settings.address,
            transport=self._settings.transport,
            mode=self._settings.mode,
            places=tuple(Place(*pair) for pair in self._ranks.gather_pairs((place.host, place.device))),
            device=self._device,
            secret=bound["secret"],
            directory=self._settings.directory,
            timeout_s=self._settings.timeout_s,
            verify=self._settings.verify,
            generation=self._generation,
        )
        candidates = [replica for replica in missing if str(replica.index) in bound["workers"]]
        joined = _each(
            candidates,
            lambda replica: joining.join(
                replica, facts, bound["workers"][str(replica.index)], bound["store"], settings
            ),
            failures,
            2 * self._settings.timeout_s + GRACE_S,  # the rendezvous, and the first exchange
            self._members.why_gone,
        )
        self._joined.update(joined)
        # A replica counts as joined only if every rank has joined it.
        flags = torch.tensor([int(replica.index in self._joined) for replica in self._replicas], dtype=torch.int64)
        everywhere = (self._ranks.add_up(flags) == self._world_size).tolist()
        for replica, is_joined in zip(self._replicas, everywhere, strict=True):
            if not is_joined:
                failures.setdefault(replica.index, f"Replica {replica.index} did not join every trainer rank.")
        self._drop(failures)

    def _send(
        self, shards: Mapping[str, torch.Tensor], only: frozenset[str] | None, deadline: float
    ) -> dict[int, Sent | str]:
        """This rank's messages to every joined replica at once; an error's text where a replica did not take them."""
        failed: dict[int, str] = {}
        joined = self._asked({})
        gpu = self._device if self._device.type == "cuda" else None

        def send(replica: ReplicaClient) -> Sent:
            if gpu is not None:
                torch.cuda.set_device(gpu)
            return self._joined[replica.index].send(shards, only, deadline)

        if gpu is not None:
            # Threads have streams of their own; what the optimizer has enqueued must be done.
            torch.cuda.current_stream(gpu).synchronize()
        left_s = deadline - time.monotonic() + GRACE_S
        return {**_each(joined, send, failed, left_s, self._members.why_gone), **failed}

    def _add_up(self, sent: Mapping[int, Sent | str], failures: dict[int, str]) -> tuple[dict[int, list[int]], int]:
        """Over all ranks: each worker's digest, by replica, and all bytes. A failure on any rank is one on all."""
        width = max((sender.workers for sender in self._joined.values()), default=0)
        rows = 1 + max((replica.index for replica in self._replicas), default=0)
        table = torch.zeros(rows, 2 + width, dtype=torch.int64)
        for index, result in sent.items():
            if isinstance(result, str):
                table[index, 0] = 1
                failures.setdefault(index, result)
            else:
                table[index, 1] = result.bytes
                digests = result.digests()
                table[index, 2 : 2 + len(digests)] = digests
        table = self._ranks.add_up(table)
        for index in [i for i in self._joined if table[i, 0]]:
            failures.setdefault(index, f"Replica {index} did not take what a trainer rank sent.")
        sums = {
            i: [v & MASK for v in table[i, 2 : 2 + s.workers].tolist()]
            for i, s in self._joined.items()
            if i not in self._served
        }
        return sums, int(table[:, 1].sum())

    def _compare(
        self, votes: Mapping[int, dict[str, Any]], sums: Mapping[int, list[int]], failures: dict[int, str]
    ) -> None:
        """A worker whose digest is not what was sent to it must not commit."""
        if not self._settings.verify:
            return
        for index, vote in votes.items():
            wrong = [w for w, (a, b) in enumerate(zip(vote["digests"], sums[index], strict=True)) if a != b]
            if wrong:
                failures[index] = f"Replica {index}, worker {wrong[0]}: the weights that arrived are not those sent."
                replica = next(replica for replica in self._replicas if replica.index == index)
                replica.call("abort", {}, timeout_s=self._settings.timeout_s)

    def _ask(
        self, route: str, body: dict[str, Any], deadline: float, failures: dict[int, str]
    ) -> dict[int, dict[str, Any]]:
        """Rank 0 asks every joined replica that has not failed; what failed is added to ``failures``."""
        if self._rank != 0:
            return {}
        timeout_s = max(1.0, deadline - time.monotonic()) + 1.0
        return _each(
            self._asked(failures),
            lambda replica: replica.call(route, body, timeout_s=timeout_s),
            failures,
            timeout_s + GRACE_S,
            self._members.why_gone,
        )

    def _asked(self, failures: Mapping[int, str]) -> list[ReplicaClient]:
        """Replicas that are joined, have not failed, and do not serve the version yet."""
        return [
            replica
            for replica in self._replicas
            if replica.index in self._joined and replica.index not in failures and replica.index not in self._served
        ]

    def _drop(self, failures: Mapping[int, str]) -> None:
        """Forgets replicas that failed; they are asked to join again at the next version."""
        for index in failures:
            sender = self._joined.pop(index, None)
            if sender is not None:
                sender.close()


def _each(
    replicas: Sequence[ReplicaClient],
    call: Callable[[ReplicaClient], T],
    failures: dict[int, str],
    timeout_s: float,
    why_gone: Callable[[ReplicaClient], str | None] = lambda replica: None,
) -> dict[int, T]:
    """The call's result for each replica, all at once; what failed, or has no end in time, is added to ``failures``."""

    def attempt(replica: ReplicaClient) -> T | LauncherError:
        try:
            return in_parallel([partial(call, replica)], timeout_s=timeout_s, why_stop=partial(why_gone, replica))[0]
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

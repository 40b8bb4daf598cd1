"""One version on its way to all replicas, in two phases: prepare, send, vote and compare; then commit.

The two phases are decided here. Every trainer rank runs the same transaction; rank 0 sends the requests, and what it
decides the other ranks learn in collectives. A replica that fails a step keeps the version that it serves.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from launcher.bridge.codec.local import LocalTensor
from launcher.bridge.parallel import Results
from launcher.bridge.protocol import Abort, Commit, CommitReply, Prepare, TrainerSpec, Vote, VoteReply
from launcher.bridge.settings import BridgeSettings
from launcher.bridge.trainer.connect import GRACE_S
from launcher.bridge.trainer.rank_group import RankGroup
from launcher.bridge.trainer.replica_sender import ReplicaSender, Sent
from launcher.bridge.trainer.replica_set import ReplicaSet
from launcher.common.errors import TransferError

logger = logging.getLogger(__name__)

MASK = (1 << 64) - 1

Failures = dict[int, str]
"""By index of a replica: why it did not take the version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What all ranks sent."""

    bytes: int = 0
    compared: int = 0
    changed: int = 0
    """Words compared with those of the version before, and those that had changed; 0 where everything was sent."""

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            bytes=self.bytes + other.bytes,
            compared=self.compared + other.compared,
            changed=self.changed + other.changed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateResult:
    """What became of a transaction; the same on every rank. Which replicas serve it is in the replica set."""

    traffic: Traffic
    pause_s: float
    """Longest time for which a replica did not decode."""

    failures: Failures
    """Why replicas did not take the version, the last time they were offered it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decision:
    """Rank 0's, at the end of a round."""

    served: tuple[int, ...]
    failures: Failures
    again: tuple[int, ...]
    """Replicas that failed but answer, and would have got the version from another replica, or had only to be connected
    again: the trainer can feed them."""

    pause_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateTransaction:
    """A version, and what a rank needs to bring it to the replicas; made for one version, and run once."""

    version: int
    shards: Mapping[str, LocalTensor]
    only: frozenset[str] | None
    """Names of the storages that are sent; None for all."""

    releases: bool
    """Whether a restarted engine that waits for weights need not wait for others after these."""

    spec: TrainerSpec
    device: torch.device
    """Of this rank's weights."""

    replicas: ReplicaSet
    ranks: RankGroup
    settings: BridgeSettings
    mark: Callable[[str, str], None] = lambda _phase, _state: None
    """Called with a phase of the start-up, and ``begin`` or ``end``."""

    def run(self) -> UpdateResult:
        """Offers the version to all replicas that lack it, again to those that come back, until enough serve it.

        Raises:
            TransferError: fewer replicas than ``min_replicas`` serve it, and no other comes.
        """
        replicas, wanted = self.replicas, self.settings.wanted_replicas
        replicas.begin_delivery()
        traffic, pause_s = Traffic(), 0.0
        failed: Failures = {}
        tries: dict[tuple[int, int], int] = {}
        while True:
            replicas.refresh()
            for start in replicas.lacking():
                tries[start] = tries.get(start, 0) + 1
            decision, sent = self._round(failed)
            traffic, pause_s = traffic + sent, max(pause_s, decision.pause_s)
            if decision.again:
                logger.warning("version %d: %s", self.version, " ".join(decision.failures[i] for i in decision.again))
                replicas.send_directly(decision.again)
                failed = {i: reason for i, reason in decision.failures.items() if i not in decision.again}
                continue
            failed = {}
            if len(replicas.serving) >= wanted:
                return UpdateResult(traffic=traffic, pause_s=pause_s, failures=decision.failures)
            if not replicas.wait_for_another(tries):
                raise TransferError(
                    f"Version {self.version} was taken by {len(replicas.serving)} of {replicas.size} replicas, but"
                    f" {wanted} must: {' '.join(decision.failures.values())}"
                )

    def _round(self, failed: Failures) -> tuple[_Decision, Traffic]:
        """Offers the version once to every replica that lacks it, after connecting those that are not connected.

        Args:
            failed: replicas that are not offered it, with reasons.
        """
        replicas = self.replicas
        before = set(replicas.connected)
        self.mark("groups", "begin")
        failures = failed | replicas.connect_missing(self.spec, self.device, failed)
        self.mark("groups", "end")
        self.mark("first sync", "begin")
        # A replica that is new has none of the other tensors.
        only = None if set(replicas.connected) - before else self.only

        refused = self._prepare(only, failures)
        failures = self._shared({**refused, **failures})
        bases = {index: replicas.base(index) for index in replicas.pending(failures)}
        replicas.drop(failures)

        # A deadline of its own: a replica that hung until now leaves the others their time.
        deadline = time.monotonic() + self.settings.timeout_s
        sums, traffic, not_sent = self._all_reduce(self._send(only, bases, deadline))
        failures = {**not_sent, **failures}
        failures = {**replicas.orphans(failures), **failures}

        vote = Vote(version=self.version, timeout_s=max(0.1, deadline - time.monotonic()))
        votes = replicas.call_pending(vote, deadline, failures)
        failures = {**votes.failures, **failures}
        wrong = differences(votes.values, sums) if self.settings.verify else {}
        self._abort(wrong)
        failures = {**failures, **wrong}

        commits = self._commit(failures)
        failures = {**commits.failures, **failures}
        decision = self._decide(commits.values, failures, refused)
        replicas.drop(decision.failures)
        replicas.committed(self.version, decision.served, self.shards, only)
        return decision, traffic

    def _prepare(self, only: frozenset[str] | None, failed: Failures) -> Failures:
        """Rank 0: has replicas begin to receive. Those that refuse were restarted at their address, or are busy with a
        version that is not wanted any more: they are connected again.
        """
        names = None if only is None else tuple(sorted(only))

        def prepare(index: int) -> Prepare:
            base = self.replicas.base(index)
            return Prepare(version=self.version, names=names, base=None if base is None else base[0])

        deadline = time.monotonic() + self.settings.timeout_s
        return self.replicas.call_pending(prepare, deadline, failed).failures

    def _shared(self, failures: Failures) -> Failures:
        """Rank 0's failures and this rank's, and those of replicas that a failed one relays to: the same indexes on
        every rank."""
        for index in self.ranks.broadcast(sorted(failures), list[int]):
            failures = {index: f"Replica {index} failed; rank 0 has the reason.", **failures}
        return {**self.replicas.orphans(failures), **failures}

    def _send(
        self,
        only: frozenset[str] | None,
        bases: Mapping[int, tuple[int, Mapping[str, LocalTensor]] | None],
        deadline: float,
    ) -> dict[int, Sent | str]:
        """This rank's messages to every connected replica at once; an error's text where they were not taken."""
        gpu = self.device if self.device.type == "cuda" else None

        def send(index: int, sender: ReplicaSender) -> Sent:
            if gpu is not None:
                torch.cuda.set_device(gpu)
            base = bases.get(index)
            return sender.send(self.shards, only, deadline, None if base is None else base[1])

        if gpu is not None:
            # Threads have streams of their own; what the optimizer has enqueued must be done.
            torch.cuda.current_stream(gpu).synchronize()
        results = self.replicas.for_pending(send, deadline - time.monotonic() + GRACE_S)
        return {**results.values, **results.failures}

    def _all_reduce(self, sent: Mapping[int, Sent | str]) -> tuple[dict[int, list[int]], Traffic, Failures]:
        """Over all ranks: each worker's checksum, by replica; what was sent; which replicas failed on any rank."""
        connected = self.replicas.connected
        width = max((sender.workers for sender in connected.values()), default=0)
        table = torch.zeros(1 + max(connected, default=0), 4 + width, dtype=torch.int64)
        failures: Failures = {}
        for index, result in sent.items():
            if isinstance(result, str):
                table[index, 0] = 1
                failures[index] = result
            else:
                digests = result.digests()
                table[index, 1:4] = torch.tensor([result.bytes, result.compared, result.changed])
                table[index, 4 : 4 + len(digests)] = digests
        table = self.ranks.all_reduce_sum(table)
        for index in [i for i in connected if table[i, 0]]:
            failures.setdefault(index, f"Replica {index} did not take what a trainer rank sent.")
        # What is relayed is what was sent to the first relay.
        sums = {
            index: [value & MASK for value in table[self.replicas.root(index), 4 : 4 + sender.workers].tolist()]
            for index, sender in connected.items()
            if index not in self.replicas.serving and index not in failures
        }
        total_bytes, compared, changed = table[:, 1:4].sum(0).tolist()
        return sums, Traffic(bytes=total_bytes, compared=compared, changed=changed), failures

    def _abort(self, wrong: Failures) -> None:
        """Rank 0: replicas whose weights are not those that were sent forget them."""
        others = set(self.replicas.pending()) - wrong.keys()
        if wrong:
            deadline = time.monotonic() + self.settings.timeout_s
            for index, reason in self.replicas.call_pending(Abort(), deadline, others).failures.items():
                logger.warning("replica %d did not drop version %d: %s", index, self.version, reason)

    def _commit(self, failed: Failures) -> Results[CommitReply]:
        request = Commit(
            version=self.version, releases=self.releases, reset_prefix_cache=self.settings.reset_prefix_cache
        )
        return self.replicas.call_pending(request, time.monotonic() + self.settings.timeout_s, failed)

    def _decide(self, commits: Mapping[int, CommitReply], failures: Failures, refused: Failures) -> _Decision:
        """Rank 0's decision, on every rank."""
        decision = _Decision(
            served=tuple(sorted(commits)),
            failures=failures,
            again=tuple(self.replicas.retriable(failures, refused)),
            pause_s=max((reply.pause_s for reply in commits.values()), default=0.0),
        )
        return self.ranks.broadcast(decision, _Decision)


def differences(votes: Mapping[int, VoteReply], sums: Mapping[int, Sequence[int]]) -> Failures:
    """Replicas with a worker whose checksum is not that of what was sent to it: they must not commit."""
    found: Failures = {}
    for index, vote in votes.items():
        wrong = [w for w, (a, b) in enumerate(zip(vote.digests, sums[index], strict=True)) if a != b]
        if wrong:
            found[index] = f"Replica {index}, worker {wrong[0]}: the weights that arrived are not those sent."
    return found

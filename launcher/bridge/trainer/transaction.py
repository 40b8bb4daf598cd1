"""One version, offered once to every replica that lacks it: prepare, send, vote, compare, commit."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from launcher.bridge.settings import BridgeSettings, UpdateKind
from launcher.bridge.trainer.module_state import Weight
from launcher.bridge.trainer.rank_group import Ranks
from launcher.bridge.trainer.replica_client import ReplicaClient
from launcher.bridge.trainer.replica_sender import Sent
from launcher.bridge.trainer.replica_set import GRACE_S, Replicas

MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of an offer; the same on every rank. Who took it is in :attr:`Replicas.served`."""

    failures: Mapping[int, str]
    """By replica, why it did not take the version."""

    again: frozenset[int]
    """Replicas that failed, but are there, and would have got the version from another replica or had only to be
    joined anew: the trainer can feed them."""

    bytes: int
    """Sent by all ranks."""

    compared: int
    changed: int
    """Of all ranks: words compared with those of the version before, and those that had changed."""

    pause_s: float
    """Longest time for which a replica did not decode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A version, and what a rank needs to offer it; every trainer rank makes the same."""

    version: int
    held: Sequence[Weight]
    only: frozenset[str] | None
    """Names of the storages that are sent; None for all."""

    releases: bool
    """Whether a restarted engine that waits for weights need not wait for others after these."""

    device: torch.device
    replicas: Replicas
    ranks: Ranks
    settings: BridgeSettings

    def make(self, failures: dict[int, str]) -> Outcome:
        """Takes the joined replicas through all steps; each that fails one is dropped.

        Args:
            failures: replicas that have failed before, with reasons.
        """
        deadline = time.monotonic() + self.settings.timeout_s
        names = None if self.only is None else sorted(self.only)
        # Both sides must mean the same: whom a rank drops meanwhile has failed.
        bases = {replica.index: self.replicas.base_of(replica.index) for replica in self.replicas.asked(failures)}
        not_joined = set(failures)
        self.replicas.ask(
            "prepare",
            lambda replica: {"version": self.version, "names": names, "base": bases[replica.index]},
            deadline,
            failures,
        )
        # Restarted at its address, or busy with a version that nobody wants any more: to be joined anew.
        refused = failures.keys() - not_joined
        for index in self.ranks.share(sorted(failures)):
            failures.setdefault(index, f"Replica {index} failed; rank 0 says why.")
        failures |= self.replicas.orphans(failures)
        self.replicas.drop(failures)
        # Anew: a replica that hung until now leaves the others their time.
        deadline = time.monotonic() + self.settings.timeout_s
        sums, (total_bytes, compared, changed) = self._add_up(self._send(bases, deadline), failures)
        failures |= self.replicas.orphans(failures)
        vote = {"version": self.version, "timeout_s": max(0.1, deadline - time.monotonic())}
        votes = self.replicas.ask("vote", vote, deadline, failures)
        self._compare(votes, sums, failures)
        commit = {
            "version": self.version,
            "releases": self.releases,
            "reset_prefix_cache": self.settings.reset_prefix_cache,
        }
        answers = self.replicas.ask("commit", commit, time.monotonic() + self.settings.timeout_s, failures)
        words = {
            "failures": {str(index): text for index, text in failures.items()},
            "pause_s": max((float(answer["pause_s"]) for answer in answers.values()), default=0.0),
            "served": sorted(answers),
            "again": self._worth_another(refused, failures),
        }
        words = self.ranks.share(words)
        failures = {int(index): text for index, text in words["failures"].items()}
        self.replicas.drop(failures)
        generations = {replica.index: replica.info.restart_count for replica in self.replicas.known}
        self.replicas.served |= {index: generations[index] for index in words["served"]}
        self._committed(words["served"])
        return Outcome(
            failures=failures,
            again=frozenset(words["again"]),
            bytes=total_bytes,
            compared=compared,
            changed=changed,
            pause_s=float(words["pause_s"]),
        )

    def _worth_another(self, refused: Collection[int], failures: Mapping[int, str]) -> list[int]:
        """Rank 0: replicas that failed for no reason of their own, and are there; each gets one more chance."""
        if self.ranks.rank != 0:
            return []
        replicas = self.replicas
        return replicas.answering(({*replicas.relayed, *refused} & failures.keys()) - replicas.direct)

    def _committed(self, indexes: Sequence[int]) -> None:
        """What the next version is compared with: what some replica has committed."""
        # Whoever has lost its relay meanwhile serves the version, but is not joined any more.
        joined = [self.replicas.joined[index] for index in indexes if index in self.replicas.joined]
        for sender in joined:
            sender.committed = self.version
        if joined and self.settings.update == UpdateKind.DELTA:
            self.replicas.base.advance(self.version, self._shards(), self.only, [sender.plan for sender in joined])

    def _shards(self) -> dict[str, torch.Tensor]:
        return {weight.name: weight.local for weight in self.held if weight.alias_of is None}

    def _send(self, bases: Mapping[int, int | None], deadline: float) -> dict[int, Sent | str]:
        """This rank's messages to every joined replica at once; an error's text where a replica did not take them."""
        failed: dict[int, str] = {}
        shards = self._shards()
        gpu = self.device if self.device.type == "cuda" else None

        def send(replica: ReplicaClient) -> Sent:
            if gpu is not None:
                torch.cuda.set_device(gpu)
            base = None if bases[replica.index] is None else self.replicas.base.shards
            return self.replicas.joined[replica.index].send(shards, self.only, deadline, base)

        if gpu is not None:
            # Threads have streams of their own; what the optimizer has enqueued must be done.
            torch.cuda.current_stream(gpu).synchronize()
        left_s = deadline - time.monotonic() + GRACE_S
        return {**self.replicas.each(self.replicas.asked({}), send, failed, left_s), **failed}

    def _add_up(
        self, sent: Mapping[int, Sent | str], failures: dict[int, str]
    ) -> tuple[dict[int, list[int]], tuple[int, int, int]]:
        """Over all ranks: each worker's digest, by replica, and bytes, words compared, words changed.

        A failure on any rank is one on all.
        """
        joined = self.replicas.joined
        width = max((sender.workers for sender in joined.values()), default=0)
        rows = 1 + max((replica.index for replica in self.replicas.known), default=0)
        table = torch.zeros(rows, 4 + width, dtype=torch.int64)
        for index, result in sent.items():
            if isinstance(result, str):
                table[index, 0] = 1
                failures.setdefault(index, result)
            else:
                digests = result.digests()
                table[index, 1:4] = torch.tensor([result.bytes, result.compared, result.changed])
                table[index, 4 : 4 + len(digests)] = digests
        table = self.ranks.add_up(table)
        for index in [i for i in joined if table[i, 0]]:
            failures.setdefault(index, f"Replica {index} did not take what a trainer rank sent.")
        # What is relayed is what was sent to the first relay.
        sums = {
            i: [v & MASK for v in table[self.replicas.root(i), 4 : 4 + s.workers].tolist()]
            for i, s in joined.items()
            if i not in self.replicas.served and i not in failures
        }
        total_bytes, compared, changed = table[:, 1:4].sum(0).tolist()
        return sums, (total_bytes, compared, changed)

    def _compare(
        self, votes: Mapping[int, dict[str, Any]], sums: Mapping[int, list[int]], failures: dict[int, str]
    ) -> None:
        """A worker whose digest is not what was sent to it must not commit."""
        if not self.settings.verify:
            return
        for index, vote in votes.items():
            wrong = [w for w, (a, b) in enumerate(zip(vote["digests"], sums[index], strict=True)) if a != b]
            if wrong:
                failures[index] = f"Replica {index}, worker {wrong[0]}: the weights that arrived are not those sent."
                replica = next(replica for replica in self.replicas.known if replica.index == index)
                replica.call("abort", {}, timeout_s=self.settings.timeout_s)

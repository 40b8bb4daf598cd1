"""One version, offered once to every replica that lacks it: prepare, send, vote, compare, commit."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from launcher.bridge.collective import Ranks
from launcher.bridge.replica import ReplicaClient
from launcher.bridge.replicas import GRACE_S, Replicas
from launcher.bridge.sending import Sent
from launcher.bridge.settings import BridgeSettings
from launcher.bridge.state import Weight

MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of an offer; the same on every rank. Who took it is in :attr:`Replicas.served`."""

    failures: Mapping[int, str]
    """By replica, why it did not take the version."""

    bytes: int
    """Sent by all ranks."""

    pause_s: float
    """Longest time for which a replica did not decode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A version, and what a rank needs to offer it; every trainer rank makes the same."""

    version: int
    held: Sequence[Weight]
    only: frozenset[str] | None
    """Names of the storages that are sent; None for all."""

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
        body = {"version": self.version, "names": None if self.only is None else sorted(self.only)}
        self.replicas.ask("prepare", body, deadline, failures)
        for index in self.ranks.share(sorted(failures)):
            failures.setdefault(index, f"Replica {index} failed; rank 0 says why.")
        self.replicas.drop(failures)
        sums, total_bytes = self._add_up(self._send(deadline), failures)
        vote = {"version": self.version, "timeout_s": max(0.1, deadline - time.monotonic())}
        votes = self.replicas.ask("vote", vote, deadline, failures)
        self._compare(votes, sums, failures)
        commit = {"version": self.version, "reset_prefix_cache": self.settings.reset_prefix_cache}
        answers = self.replicas.ask("commit", commit, time.monotonic() + self.settings.timeout_s, failures)
        words = {
            "failures": {str(index): text for index, text in failures.items()},
            "pause_s": max((float(answer["pause_s"]) for answer in answers.values()), default=0.0),
            "served": sorted(answers),
        }
        words = self.ranks.share(words)
        failures = {int(index): text for index, text in words["failures"].items()}
        self.replicas.drop(failures)
        generations = {replica.index: replica.generation for replica in self.replicas.known}
        self.replicas.served |= {index: generations[index] for index in words["served"]}
        return Outcome(failures=failures, bytes=total_bytes, pause_s=float(words["pause_s"]))

    def _send(self, deadline: float) -> dict[int, Sent | str]:
        """This rank's messages to every joined replica at once; an error's text where a replica did not take them."""
        failed: dict[int, str] = {}
        shards = {weight.name: weight.local for weight in self.held if weight.alias_of is None}
        gpu = self.device if self.device.type == "cuda" else None

        def send(replica: ReplicaClient) -> Sent:
            if gpu is not None:
                torch.cuda.set_device(gpu)
            return self.replicas.joined[replica.index].send(shards, self.only, deadline)

        if gpu is not None:
            # Threads have streams of their own; what the optimizer has enqueued must be done.
            torch.cuda.current_stream(gpu).synchronize()
        left_s = deadline - time.monotonic() + GRACE_S
        return {**self.replicas.each(self.replicas.asked({}), send, failed, left_s), **failed}

    def _add_up(self, sent: Mapping[int, Sent | str], failures: dict[int, str]) -> tuple[dict[int, list[int]], int]:
        """Over all ranks: each worker's digest, by replica, and all bytes. A failure on any rank is one on all."""
        joined = self.replicas.joined
        width = max((sender.workers for sender in joined.values()), default=0)
        rows = 1 + max((replica.index for replica in self.replicas.known), default=0)
        table = torch.zeros(rows, 2 + width, dtype=torch.int64)
        for index, result in sent.items():
            if isinstance(result, str):
                table[index, 0] = 1
                failures.setdefault(index, result)
            else:
                table[index, 1] = result.bytes
                digests = result.digests()
                table[index, 2 : 2 + len(digests)] = digests
        table = self.ranks.add_up(table)
        for index in [i for i in joined if table[i, 0]]:
            failures.setdefault(index, f"Replica {index} did not take what a trainer rank sent.")
        sums = {
            i: [v & MASK for v in table[i, 2 : 2 + s.workers].tolist()]
            for i, s in joined.items()
            if i not in self.replicas.served
        }
        return sums, int(table[:, 1].sum())

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

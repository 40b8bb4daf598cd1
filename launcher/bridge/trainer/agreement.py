"""Before ranks work together: all of them make the same call, each says what it holds, and who is missing is named."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from torch import distributed as dist

from launcher.bridge.trainer.description import MOST_NAMED, named_ranks
from launcher.common.codec import from_json, to_json
from launcher.common.errors import TransferError

logger = logging.getLogger(__name__)

NOTICE_S = 5.0
"""A rank that has waited so long for others logs which ones, and again after each further such time."""

LOOK_S = 0.001
"""How long a rank waits before it looks at the store again; twice as long each time."""

LOOKS_PER_S = 5000
"""Of all ranks, at most, once they have waited for a while."""

GRACE_S = 2.0
"""Longest time between rank 0's decision and its coming to a rank that had just given up."""

ABSENT_HINT = (
    "HINT: every rank calls it, not rank 0 alone (`if rank == 0:`); raise `bridge.rank_timeout_s` if ranks come that"
    " late."
)
CLOSED, LEFT = "closed", "left"
"""What a rank says when it has closed its bridge, and when it has given a call up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What one rank is about to do."""

    name: str
    """As a person would write it: ``publish(version=3)``; the same on every rank."""

    content: str = ""
    """Digest of what this rank holds."""

    error: str = ""
    """Why this rank cannot do it; then none does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankAgreement:
    """Rank 0's, on every rank."""

    error: str = ""
    contents: dict[str, list[int]] = field(default_factory=dict)
    """Each digest with the ranks that hold this."""


class Agreement:
    """The ranks' calls, by way of rank 0's store. A rank that waits in vain leaves nothing behind: the next call that
    all ranks make works.

    Args:
        store: of which rank 0 is the server.
        timeout_s: how long a rank waits for the others.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, timeout_s: float) -> None:
        self._store = dist.PrefixStore("agreement", store)
        self._rank = rank
        self._size = size
        self._timeout_s = timeout_s
        self._longest_pause_s = max(0.02, size / LOOKS_PER_S)
        self._keys = [f"call/{rank}" for rank in range(size)]
        self._store.set(self._keys[rank], "")
        if rank == 0:
            self._store.set("round", "0")

    def meet(self, call: Call) -> dict[str, list[int]]:
        """Returns once every rank has come with the same call; each digest with the ranks whose it is.

        Raises:
            TransferError: on every rank that came: ranks are missing, called something else, or one of them cannot.
        """
        try:
            number = int(self._store.get("round"))
            self._store.set(self._keys[self._rank], f"{number} {to_json(call).decode()}")
            data = self._decide(number, call) if self._rank == 0 else self._follow(number, call)
        except RuntimeError as error:
            raise TransferError(f"`{call.name}`: trainer rank 0 has ended: its store does not answer.") from error
        decision = from_json(data, RankAgreement)
        if decision.error:
            raise TransferError(decision.error)
        return decision.contents

    def exchange(self, own: str, contents: Mapping[str, list[int]]) -> dict[str, bytes]:
        """What ranks hold, by its digest: the first rank of each shares it.

        Raises:
            TransferError: a rank did not share its own in time.
        """
        for digest, ranks in contents.items():
            if ranks[0] == self._rank:
                self._store.set(f"content/{digest}", own)
        try:
            self._store.wait([f"content/{digest}" for digest in contents], timedelta(seconds=self._timeout_s))
        except RuntimeError as error:
            raise TransferError("A trainer rank did not share what it holds; it may have ended.") from error
        return {digest: self._store.get(f"content/{digest}") for digest in contents}

    def leave(self) -> None:
        """This rank makes no further call; others need not wait for it. Never fails."""
        try:
            self._store.set(self._keys[self._rank], CLOSED)
        except RuntimeError:
            logger.debug("rank 0's store is gone", exc_info=True)

    def _decide(self, number: int, call: Call) -> bytes:
        """Rank 0: waits for the others, and shares what follows."""
        begin, notice = time.monotonic(), NOTICE_S
        for _ in self._pauses():
            calls = dict(enumerate(self._store.multi_get(self._keys)))
            missing = self._missing(calls, str(number))
            closed = [rank for rank in missing if calls[rank] == CLOSED.encode()]
            waited = time.monotonic() - begin
            if not missing or closed or waited > self._timeout_s:
                break
            if waited > notice:
                notice += NOTICE_S
                logger.warning("%s", _absent(call, missing, self._size, waited))
        if closed:
            decision = RankAgreement(error=f"`{call.name}`: trainer {named_ranks(closed)} has closed its bridge.")
        elif missing:
            decision = RankAgreement(error=f"{_absent(call, missing, self._size, waited)} {ABSENT_HINT}")
        else:
            decision = _decision({rank: from_json(value.split(b" ", 1)[1], Call) for rank, value in calls.items()})
        data = to_json(decision)
        # First the number: who has the decision may come with the next call at once.
        self._store.set("round", str(number + 1))
        self._store.set(f"decision/{number}", data.decode())
        self._store.delete_key(f"decision/{number - 2}")
        return data

    def _follow(self, number: int, call: Call) -> bytes:
        """Another rank: waits for rank 0's decision. Rank 0 names the missing; where it is missing itself, they do."""
        begin, notice, key, missing = time.monotonic(), NOTICE_S, f"decision/{number}", [0]
        for _ in self._pauses():
            if self._store.check([key]):
                return bytes(self._store.get(key))
            waited = time.monotonic() - begin
            if waited > min(notice, self._timeout_s):
                notice += NOTICE_S
                calls = dict(enumerate(self._store.multi_get(self._keys)))
                missing = self._missing(calls, str(number), f"{LEFT} {number}")
                if 0 in missing and self._rank == min(set(calls) - set(missing)):
                    logger.warning("%s", _absent(call, missing, self._size, waited))
            if waited > self._timeout_s + (0 if 0 in missing else self._timeout_s + GRACE_S):
                break
        self._store.set(self._keys[self._rank], f"{LEFT} {number} ")
        # Rank 0 may have decided just before.
        time.sleep(GRACE_S if self._store.get(self._keys[0]).startswith(f"{number} ".encode()) else 0.0)
        if self._store.check([key]):
            return bytes(self._store.get(key))
        return to_json(RankAgreement(error=f"{_absent(call, missing, self._size, waited)} {ABSENT_HINT}"))

    def _pauses(self) -> Iterator[None]:
        pause_s = LOOK_S
        while True:
            yield
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, self._longest_pause_s)

    def _missing(self, calls: Mapping[int, bytes], *heads: str) -> list[int]:
        """Ranks that say nothing that begins with one of these."""
        wanted = tuple(f"{head} ".encode() for head in heads)
        return [rank for rank, value in calls.items() if not value.startswith(wanted)]


def _decision(calls: Mapping[int, Call]) -> RankAgreement:
    failed = {rank: call.error for rank, call in calls.items() if call.error}
    if failed:
        reasons: dict[str, list[int]] = {}
        for rank, error in failed.items():
            reasons.setdefault(error, []).append(rank)
        texts = [f"{error} (Trainer {named_ranks(ranks, len(calls))}.)" for error, ranks in reasons.items()]
        return RankAgreement(error=" ".join(texts[:MOST_NAMED]))
    names: dict[str, list[int]] = {}
    contents: dict[str, list[int]] = {}
    for rank, call in calls.items():
        names.setdefault(call.name, []).append(rank)
        contents.setdefault(call.content, []).append(rank)
    if len(names) > 1:
        texts = [f"`{name}` on {named_ranks(ranks)}" for name, ranks in names.items()]
        return RankAgreement(
            error=f"The trainer's ranks call different things: {'; '.join(texts[:MOST_NAMED])}. HINT: every rank makes"
            " the same calls of the bridge, in the same order."
        )
    return RankAgreement(contents=contents)


def _absent(call: Call, missing: list[int], size: int, waited_s: float) -> str:
    return f"`{call.name}`: trainer {named_ranks(missing)} of {size} did not make this call within {waited_s:.0f} s."

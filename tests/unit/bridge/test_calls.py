"""Calls to several replicas at once, and what a round of an update decides from their results."""

from __future__ import annotations

import threading
import time

import pytest

from launcher.bridge import parallel
from launcher.bridge.parallel import call_each
from launcher.bridge.protocol import VoteReply
from launcher.bridge.trainer.relay_tree import levels, orphans, root
from launcher.bridge.trainer.transaction import differences
from launcher.bridge.vllm import compat
from launcher.common.errors import TransferError

FOREVER = threading.Event()
"""Never set."""


def refuse() -> str:
    raise TransferError("no")


def test_a_replica_that_fails_or_hangs_costs_the_others_nothing() -> None:
    begin = time.monotonic()
    results = call_each(
        {
            0: [lambda: "a", lambda: "b"],
            1: [refuse, lambda: str(FOREVER.wait(60))],
            2: [lambda: str(FOREVER.wait(60))],
        },
        timeout_s=0.5,
    )
    assert results.values == {0: ["a", "b"]}
    assert results.failures == {1: "no", 2: "No end after 0.5 s."}
    assert time.monotonic() - begin < 30.0


def test_a_replica_that_is_known_to_be_lost_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "LOOK_S", 0.05)
    begin = time.monotonic()
    results = call_each(
        {0: [lambda: "a"], 1: [lambda: str(FOREVER.wait(60))]},
        timeout_s=60.0,
        failure_reason=lambda index: f"Replica {index} is lost." if index == 1 else None,
    )
    assert (results.values, results.failures) == ({0: ["a"]}, {1: "Replica 1 is lost."})
    assert time.monotonic() - begin < 30.0


def test_an_error_that_is_no_failure_of_a_replica_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        call_each({0: [lambda: 1 / 0]}, timeout_s=60.0)


def test_a_replica_whose_checksums_differ_does_not_commit_and_the_first_worker_is_named() -> None:
    votes = {0: VoteReply(version=3, digests=(1, 2)), 4: VoteReply(version=3, digests=(1, 2, 3))}
    assert differences(votes, {0: [1, 2], 4: [1, 9, 8]}) == {
        4: "Replica 4, worker 1: the weights that arrived are not those sent."
    }


def test_what_hangs_below_a_replica_that_failed_is_lost_with_it() -> None:
    parent_of = {1: 0, 2: 1, 4: 3}
    assert root(parent_of, 2) == 0
    assert root(parent_of, 3) == 3
    assert list(levels(parent_of)) == [[1, 4], [2]]
    assert set(orphans(parent_of, connected={0, 1, 2, 3, 4}, failed={0})) == {1, 2}
    assert set(orphans(parent_of, connected={0, 1, 2, 4}, failed=())) == {4}
    assert orphans(parent_of, connected={0, 1, 2, 3, 4}, failed=()) == {}


def test_a_release_of_vllm_that_was_not_tested_is_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat, "TESTED", {str(compat.release()): "CPU"})
    compat.warn_if_untested()
    assert caplog.text == ""
    monkeypatch.setattr(compat, "TESTED", {"0.1.0": "GPU"})
    compat.warn_if_untested()
    assert ("was not tested with vLLM" in caplog.text) == (compat.release() is not None)

"""A thread that delivers what is queued: in order, again until it succeeds, and no longer than its owner wants."""

from __future__ import annotations

import threading

from launcher.common.delivery import DeliveryThread

WAIT_S = 60.0


def test_an_item_is_delivered_again_until_that_succeeds_and_the_next_one_waits() -> None:
    calls: list[str] = []

    def deliver(item: str) -> bool:
        calls.append(item)
        return item != "a" or calls.count("a") == 3

    thread = DeliveryThread(deliver, name="test", retry_s=0.001)
    for item in "abc":
        thread.put(item)
    assert thread.flush(WAIT_S)
    assert calls == ["a", "a", "a", "b", "c"]
    thread.close()


def test_a_close_with_time_tries_what_is_left_once_more() -> None:
    calls: list[str] = []
    has_failed = threading.Event()

    def deliver(item: str) -> bool:
        calls.append(item)
        has_failed.set()
        return False

    thread = DeliveryThread(deliver, name="test", retry_s=WAIT_S)
    for item in "abc":
        thread.put(item)
    assert has_failed.wait(WAIT_S)
    thread.close(WAIT_S)
    assert calls == ["a", "b", "c"]


def test_a_close_without_time_drops_what_is_left() -> None:
    calls: list[str] = []
    is_in_call, may_go_on = threading.Event(), threading.Event()

    def deliver(item: str) -> bool:
        calls.append(item)
        is_in_call.set()
        return may_go_on.wait(WAIT_S)

    thread = DeliveryThread(deliver, name="test", retry_s=0.001)
    thread.put("a")
    thread.put("b")
    assert is_in_call.wait(WAIT_S)
    thread.close()
    may_go_on.set()
    assert not thread.flush(0.2)
    assert calls == ["a"]

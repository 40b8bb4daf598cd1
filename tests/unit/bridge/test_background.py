"""Updates in the background: in order, errors are not lost, and nobody writes what is still being read."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from launcher.bridge.settings import BridgeSettings
from launcher.bridge.trainer.api import Bridge
from launcher.bridge.trainer.update import UpdateQueue, UpdateReport
from launcher.common.errors import TransferError

REPORT = UpdateReport(version=1, seconds=0.1, bytes=1, density=None, pause_s=0.0, replicas=1)
PATIENCE_S = 30.0


@pytest.fixture
def publisher() -> Iterator[UpdateQueue]:
    found = UpdateQueue()
    yield found
    found.close()


def failing(_read: Callable[[], None]) -> UpdateReport:
    raise TransferError("a replica is gone")


def test_updates_are_carried_out_in_order(publisher: UpdateQueue) -> None:
    seen: list[int] = []

    def update(number: int) -> Callable[[Callable[[], None]], UpdateReport]:
        return lambda read: (seen.append(number), REPORT)[1]

    updates = [publisher.submit(number, update(number)) for number in range(20)]
    publisher.drain()
    assert seen == list(range(20))
    assert all(update.is_done for update in updates)
    assert updates[3].result() is REPORT


def test_a_failure_is_raised_where_it_is_asked_for_or_else_at_the_next_update(publisher: UpdateQueue) -> None:
    asked = publisher.submit(1, failing)
    with pytest.raises(TransferError, match="a replica is gone"):
        asked.result()
    publisher.submit(2, failing).wait()
    with pytest.raises(TransferError, match="a replica is gone"):
        publisher.submit(3, lambda read: REPORT)
    publisher.submit(4, failing)
    with pytest.raises(TransferError, match="a replica is gone"):
        publisher.drain()
    assert publisher.submit(5, lambda read: REPORT).result() is REPORT


def test_an_update_that_takes_longer_than_its_caller_waits_says_which(publisher: UpdateQueue) -> None:
    go_on = threading.Event()

    def slow(read: Callable[[], None]) -> UpdateReport:
        assert go_on.wait(PATIENCE_S)
        return REPORT

    update = publisher.submit(7, slow)
    with pytest.raises(TransferError, match=r"Version 7 has not reached the engines after 0\.01 s"):
        update.result(timeout_s=0.01)
    go_on.set()
    assert update.result(PATIENCE_S) is REPORT


def test_an_optimizers_step_waits_until_the_weights_have_been_read_and_no_longer() -> None:
    bridge = Bridge(BridgeSettings(urls=(), token="00"))
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.ones(3)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    bridge.guard(optimizer)
    reading, go_on, commit = threading.Event(), threading.Event(), threading.Event()
    found: list[float] = []

    def update(read: Callable[[], None]) -> UpdateReport:
        reading.set()
        assert go_on.wait(PATIENCE_S)
        found.append(float(weight.detach().sum()))
        read()
        # Commits at the engines take as long as they take.
        assert commit.wait(PATIENCE_S)
        return REPORT

    pending = bridge._queue.submit(1, update)
    stepping = threading.Thread(target=optimizer.step)
    assert reading.wait(PATIENCE_S)
    stepping.start()
    stepping.join(timeout=0.2)
    assert stepping.is_alive(), "the step must wait"
    go_on.set()
    stepping.join(PATIENCE_S)
    assert not stepping.is_alive()
    assert not pending.is_done
    assert found == [0.0]
    assert weight.tolist() == [-1.0] * 3
    commit.set()
    bridge.close()
    assert pending.result() is REPORT


PROGRAM = """
import sys, time
from launcher.bridge.trainer.update import UpdateQueue
from launcher.common.errors import TransferError

def update(read):
    time.sleep(0.5)
    print("sent", flush=True)
    raise TransferError("a replica is gone")

UpdateQueue().submit(7, update)
"""


@pytest.mark.slow
def test_a_program_that_ends_without_close_brings_its_update_to_an_end_and_says_what_became_of_it() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout == "sent\n"
    assert "version 7 is still on its way" in done.stderr
    assert "version 7 did not reach the engines: a replica is gone" in done.stderr


def test_closing_logs_an_error_that_nobody_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    queue = UpdateQueue()
    queue.submit(3, failing)
    queue.close()
    assert "version 3 did not reach the engines: a replica is gone" in caplog.text

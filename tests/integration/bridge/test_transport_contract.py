"""What every transport keeps: order, every size, deadlines whatever the other end does, nothing left behind."""

from __future__ import annotations

import itertools
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from tests.integration.bridge.peer_process import PeerProcess

SHORT_S = 1.5
SLACK_S = 15.0
"""For a busy machine."""

LARGE = (8 << 20) + 13
GROUPS = itertools.count()


@dataclass(kw_only=True)
class Ends:
    """Two processes, and how to join them."""

    transport: str
    devices: tuple[str, str]
    directory: Path
    store: Any
    pool: list[PeerProcess] = field(default_factory=list)

    def take(self) -> tuple[PeerProcess, PeerProcess]:
        """Two sound processes."""
        for end in [end for end in self.pool if not end.is_sound]:
            end.end()
            self.pool.remove(end)
        while len(self.pool) < 2:
            self.pool.append(PeerProcess("tests.integration.bridge.link_process"))
        for end in self.pool:
            end.call("held")  # A new process imports torch, which belongs to no deadline.
        return self.pool[0], self.pool[1]

    def words(self, **changed: Any) -> dict[str, Any]:
        """What both ends are told."""
        return {
            "transport": self.transport,
            "group": f"wires-{next(GROUPS)}",
            "store": f"127.0.0.1:{self.store.port}",
            "directory": str(self.directory),
            "largest": LARGE,
            "timeout_s": 30.0,
            **changed,
        }

    def join(self, **changed: Any) -> tuple[PeerProcess, PeerProcess]:
        """A sender and a receiver with a wire between them."""
        sender, receiver = self.take()
        words = self.words(**changed)
        receiver.send_command("join", role="receiver", device=self.devices[1], **words)
        sender.send_command("join", role="sender", device=self.devices[0], **words)
        assert [end.next_answer() for end in (sender, receiver)] == [{"joined": True}] * 2
        return sender, receiver

    @property
    def keeps_for_later(self) -> bool:
        """Whether messages go somewhere where they stay, so that a sender does not notice its receiver's end."""
        return self.transport == "filesystem"


TWO_GPUS, ONE_GPU = ("cuda:0", "cuda:1"), ("cuda:0", "cuda:0")
# A peer is mapped, and copied from, as well on the same GPU.
DEVICES = {"nccl": TWO_GPUS, "peer": TWO_GPUS if torch.cuda.device_count() > 1 else ONE_GPU, "ipc": ONE_GPU}
ON_GPUS = [pytest.param(name, marks=pytest.mark.gpu) for name in DEVICES]


@pytest.fixture(scope="module", params=["gloo", "shm", "filesystem", *ON_GPUS])
def ends(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ends]:
    """Processes that live as long as the tests of one transport need them."""
    devices = DEVICES.get(request.param, ("cpu", "cpu"))
    gpus = sum(device.startswith("cuda") for device in set(devices))
    if torch.cuda.device_count() < gpus:
        pytest.skip(f"{request.param} between two processes needs {gpus} GPUs, here are {torch.cuda.device_count()}")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=30), wait_for_workers=False)
    found = Ends(transport=request.param, devices=devices, directory=tmp_path_factory.mktemp("wires"), store=store)
    yield found
    for end in found.pool:
        end.end()
    assert shared_memory() == set()
    assert list(found.directory.iterdir()) == []


def shared_memory() -> set[str]:
    """Names of ours; other programs come and go."""
    return {path.name for path in Path("/dev/shm").iterdir() if "launcher" in path.name}


def leave(*ends: PeerProcess) -> None:
    """All of them leave the wire."""
    for end in ends:
        assert end.call("abort") == {}


def test_messages_of_every_size_come_in_order_and_whole(ends: Ends) -> None:
    sender, receiver = ends.join()
    rng = random.Random(7)
    sizes = [0, 1, 15, 16, 17, 4095, 4097, LARGE, 0, (1 << 20) - 1, *(rng.randrange(1 << 16) for _ in range(200))]
    for ahead in (1, 2):
        receiver.send_command("receive", sizes=sizes, timeout_s=60.0, ahead=ahead)
        assert sender.call("send", sizes=sizes, timeout_s=60.0) == {"sent": len(sizes)}
        assert receiver.next_answer() == {"right": len(sizes)}
    leave(sender, receiver)


def test_neither_end_needs_to_be_first(ends: Ends) -> None:
    sender, receiver = ends.join()
    sender.send_command("send", sizes=[LARGE, 5], timeout_s=60.0)
    assert receiver.call("receive", sizes=[LARGE, 5], timeout_s=60.0) == {"right": 2}
    assert sender.next_answer() == {"sent": 2}
    leave(sender, receiver)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_receiver_that_is_lost_is_an_error_within_the_deadline(ends: Ends, number: signal.Signals) -> None:
    sender, receiver = ends.join()
    sizes = [LARGE] * 8
    receiver.send_command("receive", sizes=sizes, timeout_s=60.0, hold=1)
    sender.send_command("send", sizes=sizes, timeout_s=SHORT_S)
    assert receiver.next_answer() == {"held": 1}
    receiver.signal(number)
    answer = sender.next_answer()
    if ends.keeps_for_later:
        # They go without a receiver; that it does not vote for them is what tells.
        assert answer == {"sent": len(sizes)}
    else:
        assert answer["error"].startswith("TransferError"), answer
        assert answer["seconds"] < SHORT_S + SLACK_S
    leave(sender)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_sender_that_is_lost_is_an_error_within_the_deadline(ends: Ends, number: signal.Signals) -> None:
    sender, receiver = ends.join()
    sizes = [LARGE] * 3
    sender.send_command("send", sizes=sizes, timeout_s=60.0, hold=0)
    assert sender.next_answer() == {"held": 0}
    sender.signal(number)
    answer = receiver.call("receive", sizes=sizes, timeout_s=SHORT_S)
    assert answer["error"].startswith("TransferError"), answer
    assert answer["seconds"] < SHORT_S + SLACK_S
    leave(receiver)


def test_a_silent_peer_is_an_error_within_the_deadline(ends: Ends) -> None:
    sender, receiver = ends.join()
    answer = receiver.call("receive", sizes=[100], timeout_s=0.5)
    assert "did not complete" in answer["error"] or "failed" in answer["error"]
    assert answer["seconds"] < 0.5 + SLACK_S
    leave(sender, receiver)


def test_an_end_that_nobody_meets_says_so_within_its_deadline(ends: Ends) -> None:
    for role, device in zip(("sender", "receiver"), ends.devices, strict=True):
        end, _other = ends.take()
        answer = end.call("join", role=role, device=device, **ends.words(timeout_s=1.0))
        assert answer["error"].startswith("RendezvousTimeout"), answer
        assert answer["seconds"] < 1.0 + SLACK_S


def test_leaving_wakes_the_thread_that_waits_and_frees_everything(ends: Ends) -> None:
    sender, receiver = ends.join()
    sizes = [LARGE, 1]
    receiver.send_command("receive", sizes=sizes, timeout_s=60.0)
    assert sender.call("send", sizes=sizes, timeout_s=60.0) == {"sent": 2}
    assert receiver.next_answer() == {"right": 2}
    leave(sender, receiver)
    before = [end.call("held") for end in (sender, receiver)]
    # Several times: what a transport keeps once, for all wires, is not lost.
    for _ in range(2):
        assert ends.join() == (sender, receiver)
        receiver.send_command("receive", sizes=sizes, timeout_s=60.0)
        assert sender.call("send", sizes=sizes, timeout_s=60.0) == {"sent": 2}
        assert receiver.next_answer() == {"right": 2}
        answer = receiver.call("abort_later", sizes=[1], timeout_s=1.5, after_s=0.1)
        assert answer["error"].startswith("TransferError"), answer
        leave(sender)
    after = [end.call("held") for end in (sender, receiver)]
    for one, other in zip(before, after, strict=True):
        assert one == other
        assert other["mappings"] == 0
        assert other["unpickled"] == 0


def test_a_stranger_at_the_other_end_is_refused(ends: Ends) -> None:
    sender, receiver = ends.take()
    # torch's process groups know no secrets: there, who does not know the group's name meets nobody.
    what = "group" if ends.transport in {"gloo", "nccl"} else "secret"
    words = ends.words(timeout_s=1.0)
    receiver.send_command("join", role="receiver", device=ends.devices[1], **{**words, what: "ours"})
    answer = sender.call("join", role="sender", device=ends.devices[0], **{**words, what: "theirs"})
    assert "error" in answer
    assert "error" in receiver.next_answer()


def test_a_pair_that_cannot_have_shared_memory_gets_the_next_way(tmp_path: Path) -> None:
    """Both ends learn of it, and meet again by another transport; what was asked for alone is an error at both."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=30), wait_for_workers=False)
    ends = Ends(transport="shm,gloo", devices=("cpu", "cpu"), directory=tmp_path, store=store)
    try:
        sender, receiver = ends.take()
        assert sender.call("limit_files", nbytes=4096) == {}
        ends.join()
        assert [end.call("kind")["kind"] for end in (sender, receiver)] == ["GlooSender", "GlooReceiver"]
        receiver.send_command("receive", sizes=[LARGE, 5], timeout_s=60.0)
        assert sender.call("send", sizes=[LARGE, 5], timeout_s=60.0) == {"sent": 2}
        assert receiver.next_answer() == {"right": 2}
        leave(sender, receiver)
        words = ends.words(transport="shm")
        receiver.send_command("join", role="receiver", device="cpu", **words)
        for answer in (sender.call("join", role="sender", device="cpu", **words), receiver.next_answer()):
            assert answer["error"].startswith("TransportUnavailable"), answer
            assert "bytes of shared memory" in answer["error"]
        assert sender.call("limit_files", nbytes=None) == {}
        ends.join()
        assert [end.call("kind")["kind"] for end in (sender, receiver)] == ["RingSender", "RingReceiver"]
        leave(sender, receiver)
    finally:
        for end in ends.pool:
            end.end()

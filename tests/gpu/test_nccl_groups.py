"""The bridge's groups between two processes: weights arrive whole, and a peer's end ends neither the other nor its GPU.

Every test runs over gloo on a CPU, too, where it costs little.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn

from launcher.bridge.groups import finish, init_process_group, meet
from launcher.bridge.manifest import Entry, Manifest, to_json
from launcher.bridge.receiver import Receiver
from launcher.bridge.state import gathered, weights
from launcher.errors import RendezvousTimeout, TransferError
from tests.gpu.peer import content

ROOT = Path(__file__).parents[2]
SHORT_S = 3.0
LARGE = 1 << 26
"""Elements that no transport can take before the receiver is there."""


class Peer:
    """A process of :mod:`tests.gpu.peer`."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.peer", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> dict[str, Any]:
        """Its next line; an empty answer if it has ended."""
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline() or "{}")
        return answer

    def tell(self, **command: Any) -> None:
        """One command, without waiting for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def ask(self, **command: Any) -> dict[str, Any]:
        """One command and its answer."""
        self.tell(**command)
        return self.hear()

    def end(self) -> None:
        """Without a goodbye."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


@dataclass
class Pair:
    """What a test needs to bring up two ends."""

    backend: str
    device: torch.device
    other: torch.device
    store: dist.TCPStore
    peers: list[Peer]

    def peer(self, role: str, group: str, *arguments: str) -> Peer:
        """The other end."""
        words = [role, f"127.0.0.1:{self.store.port}", "--backend", self.backend, "--device", str(self.other)]
        peer = Peer(*words, "--group", group, *arguments)
        self.peers.append(peer)
        return peer

    def group(self, name: str, timeout_s: float = 30.0) -> Any:
        """The trainer's end of a group."""
        return init_process_group(
            self.backend,
            timeout=timedelta(seconds=timeout_s),
            world_size=2,
            rank=0,
            store=self.store,
            group_name=name,
            address="127.0.0.1",
            device=self.device,
        )

    def receiver(self, manifest: Manifest, group: str) -> Receiver:
        """The engine's end."""
        return Receiver(
            manifest=manifest,
            backend=self.backend,
            group=group,
            store=f"127.0.0.1:{self.store.port}",
            rank=1,
            world_size=2,
            device=self.device,
            address="127.0.0.1",
            timeout_s=SHORT_S,
        )


@pytest.fixture(params=["gloo", pytest.param("nccl", marks=pytest.mark.gpu)])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Both ends on a CPU with gloo; each on a GPU of its own with NCCL, which refuses to share one."""
    if request.param == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip(f"NCCL between two processes needs 2 GPUs, here are {torch.cuda.device_count()}")
    devices = ("cuda:0", "cuda:1") if request.param == "nccl" else ("cpu", "cpu")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=30), wait_for_workers=False)
    found = Pair(
        backend=request.param,
        device=torch.device(devices[0]),
        other=torch.device(devices[1]),
        store=store,
        peers=[],
    )
    yield found
    for peer in found.peers:
        peer.end()


def tied_model(device: torch.device) -> nn.Module:
    """Two linear layers that share a weight, and one that is not contiguous."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(257, 257), "second": nn.Linear(257, 257), "third": nn.Linear(64, 31)})
    model["second"].weight = model["first"].weight
    model["third"].weight = nn.Parameter(torch.randn(64, 31).t())
    return model.to(device)


def manifest_of(model: nn.Module) -> Manifest:
    """In bfloat16."""
    return tuple(
        Entry(name=weight.name, shape=tuple(weight.tensor.shape), dtype="bfloat16", alias_of=weight.alias_of)
        for weight in weights(model)
    )


def still_computes(device: torch.device) -> bool:
    """Whether the device takes and finishes work, on any stream."""
    total = float(torch.ones(1000, device=device).sum())
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return total == 1000.0


@pytest.mark.timeout(180)
class TestPair:
    def test_every_version_arrives_bit_by_bit_under_all_its_names(self, pair: Pair) -> None:
        model = tied_model(pair.device)
        manifest = manifest_of(model)
        peer = pair.peer("receiver", "round", "--manifest", json.dumps(to_json(manifest)))
        group = pair.group("round")
        assert peer.hear() == {"joined": True}
        meet(group, pair.device, 30.0)
        names = [entry.name for entry in manifest]
        for version in (1, 2, 3):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.normal_()
            peer.ask(do="prepare", version=version, names=names)
            for name, tensor in gathered(weights(model), torch.bfloat16):
                finish(group.broadcast(tensor, 0), time.monotonic() + 30, name)
            assert peer.ask(do="wait")["state"] == "received"
            state = {name: content(tensor.to(torch.bfloat16)) for name, tensor in model.state_dict().items()}
            assert peer.ask(do="take", version=version) == state
        peer.ask(do="close")
        group.abort()

    def test_a_receiver_that_dies_fails_the_sender_in_time_and_another_can_take_its_place(self, pair: Pair) -> None:
        entry = Entry(name="large", shape=(LARGE,), dtype="float32")
        described = json.dumps(to_json((entry,)))
        peer = pair.peer("receiver", "dies", "--manifest", described)
        group = pair.group("dies")
        assert peer.hear() == {"joined": True}
        meet(group, pair.device, 30.0)
        peer.end()
        pair.peers.clear()
        begin = time.monotonic()
        with pytest.raises(TransferError):
            tensor = torch.ones(LARGE, device=pair.device)
            try:
                work = group.broadcast(tensor, 0)
            except RuntimeError as error:  # gloo notices the closed connection at once
                raise TransferError(str(error)) from error
            finish(work, time.monotonic() + SHORT_S, "sending")
        group.abort()
        assert time.monotonic() - begin < SHORT_S + 10
        assert still_computes(pair.device)
        # The same process, the same GPU, a new group.
        successor = pair.peer("receiver", "again", "--manifest", described)
        group = pair.group("again")
        assert successor.hear() == {"joined": True}
        meet(group, pair.device, 30.0)
        successor.ask(do="prepare", version=1, names=["large"])
        finish(group.broadcast(tensor, 0), time.monotonic() + 30, "sending")
        assert successor.ask(do="wait")["state"] == "received"
        group.abort()

    def test_a_trainer_that_dies_fails_the_receiver_in_time_and_leaves_its_gpu_usable(self, pair: Pair) -> None:
        entry = Entry(name="large", shape=(LARGE,), dtype="float32")
        peer = pair.peer("sender", "trainer")
        end = pair.receiver((entry,), "trainer")
        assert peer.hear() == {"joined": True}
        end.prepare(1, ["large"])
        peer.end()
        pair.peers.clear()
        deadline = time.monotonic() + SHORT_S + 10
        while end.status()["state"] == "receiving" and time.monotonic() < deadline:
            time.sleep(0.02)
        assert end.status()["state"] == "failed"
        begin = time.monotonic()
        end.close()
        assert time.monotonic() - begin < 10
        assert still_computes(pair.device)

    def test_a_peer_that_never_connects_is_reported_in_time(self, pair: Pair) -> None:
        if pair.backend == "gloo":
            with pytest.raises(RendezvousTimeout):
                pair.group("alone", timeout_s=1.0)
            return
        group = pair.group("alone", timeout_s=SHORT_S)
        begin = time.monotonic()
        with pytest.raises(RendezvousTimeout):
            meet(group, pair.device, SHORT_S)
        assert time.monotonic() - begin < SHORT_S + 5
        assert still_computes(pair.device)

"""The programs of the page about extending do what it says."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from launcher.bridge.transport.base import Meeting, Pair
from launcher.common.errors import LauncherError, TransferError
from launcher.config import compose
from launcher.layout import plan
from launcher.preflight.site import Site
from launcher.trainers.grpo.options import Options
from launcher.trainers.grpo.tasks import make_task
from tests.unit.documents import files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the programs lie; on the path of modules."""
    for name, text in files().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def program(folder: Path, request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """One of them, imported."""
    yield import_module(request.param)
    del sys.modules[request.param]


@pytest.mark.parametrize("program", ["tcp_transport"], indirect=True)
class TestTransport:
    PAIR = Pair(sender=0, receiver=1)

    def meeting(self, folder: Path, secret: str = "known") -> Meeting:
        return Meeting(group="g", secret=secret, directory=folder, timeout_s=20.0)

    def connect(self, program: ModuleType, folder: Path, secret: str = "known") -> tuple[list[object], list[object]]:
        """Both ends, or the sender's error."""
        ends: list[object] = []
        errors: list[object] = []

        def send() -> None:
            try:
                ends.append(program.connect_sender(self.meeting(folder), self.PAIR))
            except LauncherError as error:
                errors.append(error)

        thread = threading.Thread(target=send)
        thread.start()
        receiver = program.connect_receiver(self.meeting(folder, secret), self.PAIR)
        thread.join(30)
        return [*ends, receiver], errors

    def test_messages_arrive_whole_and_in_order(self, program: ModuleType, folder: Path) -> None:
        (sender, receiver), _ = self.connect(program, folder)
        deadline = time.monotonic() + 30
        sent = [torch.full((size,), size % 251, dtype=torch.uint8) for size in (1 << 20, 5, 1 << 16)]

        def send() -> None:
            for content in sent:
                buffer = sender.buffer(len(content), deadline)
                buffer.copy_(content)
                sender.post_send(buffer).poll(deadline)

        thread = threading.Thread(target=send)
        thread.start()
        received = [receiver.post_recv(len(content)).poll(deadline) for content in sent]
        thread.join(30)
        assert all(torch.equal(a, b) for a, b in zip(sent, received, strict=True))
        sender.abort()
        with pytest.raises(TransferError, match="the sender has left"):
            receiver.post_recv(1).poll(deadline)
        receiver.abort()
        receiver.abort()

    def test_a_worker_that_does_not_know_the_secret_is_rejected(self, program: ModuleType, folder: Path) -> None:
        (receiver,), (error,) = self.connect(program, folder, secret="guessed")
        assert "does not know" in str(error)
        receiver.abort()

    def test_a_message_that_does_not_come_is_an_error_at_the_deadline(self, program: ModuleType, folder: Path) -> None:
        (sender, receiver), _ = self.connect(program, folder)
        with pytest.raises(TransferError):
            receiver.post_recv(10).poll(time.monotonic() + 0.1)
        sender.abort()
        receiver.abort()


@pytest.mark.parametrize("program", ["polite_cluster"], indirect=True)
def test_the_cluster_rejects_a_run_on_a_busy_machine(program: ModuleType) -> None:
    cluster = program.PoliteCluster(compose())
    cluster.busy_load = float("inf")
    assert cluster.check() == []
    cluster.busy_load = -1.0
    assert "HINT" in cluster.check()[0]


@pytest.mark.parametrize("program", ["check_swap"], indirect=True)
def test_the_preflight_check_finds_what_is_swapped_out(program: ModuleType, tmp_path: Path) -> None:
    assert program.used_swap_mb("SwapTotal: 4096 kB\nSwapFree: 1024 kB\nHugepagesize: 2048 kB\n") == 3.0
    config = compose()
    layout = plan(config)
    site = Site(
        config=config,
        layout=layout,
        node=layout.nodes[0],
        run_dir=tmp_path,
        attempt_dir=tmp_path,
        model_path=None,
        address="127.0.0.1",
        scratch=tmp_path,
        is_simulated=True,
    )
    finding = program.check_swap(site)
    assert finding.name == "swap" and "swapped out on node 0" in finding.text


@pytest.mark.parametrize("program", ["my_tasks"], indirect=True)
def test_the_task_is_found_by_its_module_and_class(program: ModuleType) -> None:
    task = make_task("my_tasks:Larger", Options())
    (problem,) = task.draw(1, random.Random(0))
    assert problem.answer in problem.prompt
    assert task.reward(problem, problem.answer, finished=True) == 1.0
    assert task.reward(problem, "", finished=True) == 0.0

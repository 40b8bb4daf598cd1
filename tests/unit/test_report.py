"""What a trainer reports of its steps arrives in the run's log, from rank 0 alone, and never ends the trainer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import launcher
from launcher.common.env import LAUNCHER_CONTROL, LAUNCHER_TOKEN
from launcher.common.keys import new_token
from launcher.common.ports import hold_free_port, port_of
from launcher.config import Config, LayoutConfig
from launcher.control import emit
from launcher.control.server import ControlServer
from launcher.control.state import ControlSettings, new_state
from launcher.layout import plan


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The log of a run that this process belongs to."""
    written: list[Any] = []
    token, sock = new_token(), hold_free_port("127.0.0.1")
    layout = plan(Config(layout=LayoutConfig(nodes=2, inference_nodes=1, gpus_per_node=1, device="cpu")))
    settings = ControlSettings(layout=layout, start_timeout_s=60, lease_timeout_s=10)
    server = ControlServer(new_state(settings, time.monotonic()), sock, token, log=written.append)
    server.start()
    monkeypatch.setenv(LAUNCHER_CONTROL, f"127.0.0.1:{port_of(sock)}")
    monkeypatch.setenv(LAUNCHER_TOKEN, token)
    monkeypatch.setenv("RANK", "0")
    emit._client.cache_clear()
    yield written
    emit._client().close()
    emit._client.cache_clear()
    server.close()


def test_a_step_and_its_numbers_arrive(log: list[Any]) -> None:
    launcher.report(torch.tensor(3), reward=torch.tensor(0.25), loss=np.float32(0.5), kl=1, nothing=None)
    (event,) = log
    assert event.event_name == "step"
    assert (event.step, event.reward, event.loss, event.extra) == (3, 0.25, 0.5, {"kl": 1})


def test_other_ranks_write_nothing(log: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    launcher.report(1, reward=0.5)
    assert log == []


def test_a_run_that_is_gone_does_not_end_the_trainer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    emit._client.cache_clear()
    sock = hold_free_port("127.0.0.1")
    monkeypatch.setenv(LAUNCHER_CONTROL, f"127.0.0.1:{port_of(sock)}")
    sock.close()
    monkeypatch.setenv(LAUNCHER_TOKEN, new_token())
    monkeypatch.delenv("RANK", raising=False)
    launcher.report(7, reward=0.5)
    emit._client.cache_clear()
    assert "step 7 was not reported" in caplog.text


def test_outside_of_a_run_it_does_nothing_but_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LAUNCHER_CONTROL, raising=False)
    launcher.report(1, reward=0.5)
    with pytest.raises(TypeError, match=r"`note` \('good'\) is no number. HINT"):
        launcher.report(1, note="good")
    with pytest.raises(ValueError, match=r"`step` \(-1\) is negative"):
        launcher.report(-1)

"""What a trainer's program calls, in a process that belongs to no run: a message, or nothing happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from launcher import bridge, stopping
from launcher.checkpoint.checkpoints import Checkpoints
from launcher.common.errors import ControlError, LauncherError
from launcher.control import emit as events
from launcher.inference import client


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the variables that an agent sets."""
    for name in [name for name in os.environ if name.startswith("LAUNCHER_")]:
        monkeypatch.delenv(name)
    client._pool.cache_clear()


def checkpoints() -> None:
    weight = torch.nn.Linear(1, 1)
    Checkpoints.of_run(model=weight, optimizer=torch.optim.SGD(weight.parameters()))


@pytest.mark.parametrize(
    ("call", "variable"),
    [
        (bridge.connect, "LAUNCHER_RUN_DIR"),
        (checkpoints, "LAUNCHER_RUN_DIR"),
        (client.inference_urls, "LAUNCHER_CONTROL"),
        (client.engines, "LAUNCHER_CONTROL"),
        (client.wait_ready, "LAUNCHER_CONTROL"),
        (client.api_key, "LAUNCHER_INFERENCE_API_KEY"),
    ],
)
def test_the_message_names_what_is_missing_and_how_to_get_it(call: Callable[[], object], variable: str) -> None:
    message = re.escape(f"`{variable}` is not set: this process") + r".*HINT: start the program through `launcher`"
    with pytest.raises(LauncherError, match=message):
        call()


def test_a_token_without_a_run_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_CONTROL", "127.0.0.1:1")
    with pytest.raises(ControlError, match=r"`LAUNCHER_TOKEN` is not set\. HINT:"):
        client.inference_urls()


def test_what_only_reports_to_a_run_does_nothing() -> None:
    assert stopping.should_stop() is False
    assert stopping.is_stop_requested() is False
    events.emit("phase", phase="x", who="y", state="begin")
    with events.phase("x", "y"):
        pass


def test_an_engine_server_without_an_agent_is_a_message() -> None:
    command = [sys.executable, "-m", "launcher.inference.server", "--replica", "0", "--replica-rank", "0"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert finished.returncode == 1
    assert "`LAUNCHER_MODEL_PATH` is not set" in finished.stderr
    assert "Traceback" not in finished.stderr

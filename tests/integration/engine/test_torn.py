"""Trainers are killed and stopped while they publish, and what a vLLM answers meanwhile is never of a mix.

Nothing of the launcher is around it: a vLLM server with the bridge's middleware and worker extension, as anybody may
start it, and trainers that know the bridge alone.
"""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.bridge.settings import Mode
from launcher.common.keys import api_key, bridge_key
from tests.integration.engine.answers import check_answers, spanning
from tests.integration.engine.load_program import Client
from tests.integration.engine.questions import ask
from tests.integration.engine.vllm_server import PATIENCE_S, ROOT, serving

CLIENTS = 2
TRAINERS = 8
UPDATES = 25
"""Of one trainer, at most."""

TIMEOUT_S = 6.0
"""Of each step of an update: so long the engine may wait for a trainer that was stopped."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    command = [sys.executable, "-m", "launcher.trainers.grpo.tiny_model", str(path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return path


@pytest.fixture
def engine(model: Path, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """URL and token of a server."""
    with serving(model, tmp_path) as found:
        yield found


class Trainer:
    """A trainer that is ready to publish, or soon will be."""

    def __init__(self, log: Path) -> None:
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.engine.torn_program"],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.versions: list[int] = []
        self._is_over = False
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def hear(self) -> str:
        """Its next line; empty at its end."""
        if self._is_over:
            return ""
        line = self._lines.get(timeout=PATIENCE_S)
        self._is_over = not line
        if line.isdecimal():
            self.versions.append(int(line))
        return line

    def publish(self, **order: Any) -> None:
        """Tells it to begin; returns when it does."""
        assert self.process.stdin is not None
        assert self.hear() == "ready"
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        assert self.hear() == "joining"

    def end(self) -> None:
        """Kills it, stopped or not, and takes in what it has said."""
        self.process.kill()
        self.process.wait()
        while self.hear():
            pass
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.strip())
        self._lines.put("")


@pytest.fixture
def trainers(tmp_path: Path) -> Iterator[list[Trainer]]:
    """They import what they need while the engine starts."""
    found = [Trainer(tmp_path / "trainers.log") for _ in range(TRAINERS)]
    yield found
    for trainer in found:
        trainer.end()


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_no_token_is_of_a_mix_while_trainers_die_at_random(
    trainers: list[Trainer], model: Path, engine: tuple[str, str], tmp_path: Path
) -> None:
    url, token = engine
    key = bridge_key(token)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    log = tmp_path / "trainers.log"
    order = {"url": url, "token": token, "model": str(model), "timeout_s": TIMEOUT_S, "last": None}
    stop = threading.Event()
    clients = [Client(number, url, api_key(token), stop) for number in range(CLIENTS)]
    quarantined = 0
    try:
        trainers[0].publish(**order, version=0, mode=Mode.SHADOW)
        assert trainers[0].hear() == "0"
        for client in clients:
            client.start()
        for number in range(1, TRAINERS):
            # It dies while it joins, or at any moment of an update, which takes about as long as the longest sleep.
            for _ in range(dice.randrange(UPDATES)):
                assert trainers[number - 1].hear(), log.read_text()
            time.sleep(dice.uniform(0.0, 0.2))
            trainers[number - 1].process.send_signal(dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP]))
            info = ask(url, "/bridge/info", key)[1]
            quarantined += info["state"] == "quarantined"
            mode = [Mode.SHADOW, Mode.INPLACE, Mode.HOST_SHADOW][number % 3]
            last = {} if number + 1 < TRAINERS else {"last": info["version"] + UPDATES}
            trainers[number].publish(**{**order, **last}, version=info["version"] + 1, mode=mode)
        while trainers[-1].hear():
            pass
        assert trainers[-1].process.wait(PATIENCE_S) == 0, log.read_text()
        info = ask(url, "/bridge/info", key)[1]
        assert (info["state"], info["paused"]) == ("serving", False)
    finally:
        stop.set()
        for client in clients:
            if client.ident is not None:
                client.join(PATIENCE_S)
    for trainer in trainers:
        trainer.end()
    published = [version for trainer in trainers for version in trainer.versions]
    assert [failure for client in clients for failure in client.failures] == [], log.read_text()
    declared = check_answers([answer for client in clients for answer in client.answers])
    print(
        f"{len(published)} versions by {len(trainers)} trainers, {quarantined} left in quarantine; {len(declared)} "
        f"choices, {spanning(declared)} of more than one version"
    )
    assert info["version"] == max(published)

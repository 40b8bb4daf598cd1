"""One rank of a trainer that reports when it computes and publishes: ``python -m launcher.testing.chaos.trainer``.

It changes the weights a little, publishes them many times in a row, so that a fault that is aimed at a publication
meets one, and saves a checkpoint. Beside it a client checks the versions in every engine's answers. It resumes from
the last checkpoint.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from launcher import bridge
from launcher.checkpoint import Checkpoints
from launcher.config import load_run_config
from launcher.control.emit import emit
from launcher.events.schema import AnswersChecked, MomentReached, StepFinished
from launcher.inference.client import Pool
from launcher.stopping import should_stop
from launcher.testing.chaos.client import RequestClient
from launcher.trainers.grpo.model import TrainerRank, load_model

STEP_S = 1.0
PUBLISHES = 25
"""Per step."""

BACK_TIMEOUT_S = 120.0
"""Longest wait, at the end, for engines that are still on their way back."""


def main() -> None:
    """Trains for ``trainer.steps`` steps."""
    config = load_run_config(Path(os.environ["LAUNCHER_RUN_DIR"]))
    steps = config.trainer.steps
    worker = TrainerRank.from_environment(config.layout.device)
    worker.join()
    model = load_model(Path(os.environ["LAUNCHER_MODEL_PATH"]), worker)
    checkpoints = Checkpoints.of_run(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0))
    done = checkpoints.restore()
    weights = bridge.connect()
    weights.publish(model, version=done * PUBLISHES)
    client = RequestClient(done * PUBLISHES) if worker.is_main else None
    for step in range(done + 1, steps + 1):
        report_moment(worker, "mid-step", step)
        time.sleep(STEP_S)  # the work
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.0 + 1e-4)
        report_moment(worker, "mid-publish", step)
        publish(weights, model, step, client)
        stop = await_engines(weights, model, worker) if step == steps else should_stop()
        if client is not None:
            emit(AnswersChecked(step=step, **client.report()))
            emit(StepFinished(step=step, steps=steps, version=step * PUBLISHES, loss=0.0))
        report_moment(worker, "mid-checkpoint", step)
        checkpoints.save(step)
        if stop and step < steps:
            break
    if client is not None:
        client.close()
    weights.close()
    worker.end()


def report_moment(worker: TrainerRank, moment: str, step: int) -> None:
    """Writes the moment that a fault waits for."""
    if worker.is_main:
        emit(MomentReached(moment=moment, step=step))


def publish(weights: bridge.Bridge, model: torch.nn.Module, step: int, client: RequestClient | None) -> None:
    """The step's versions, one after another."""
    for version in range((step - 1) * PUBLISHES + 1, step * PUBLISHES + 1):
        if client is not None:
            client.begun = version
        weights.publish(model, version=version)
        if client is not None:
            client.committed = version


def await_engines(weights: bridge.Bridge, model: torch.nn.Module, worker: TrainerRank) -> bool:
    """Waits until every engine that will serve does; True if a stop was requested meanwhile."""
    pool = Pool.from_environment()
    deadline = time.monotonic() + BACK_TIMEOUT_S
    while not (stop := should_stop()):
        away = worker.is_main and time.monotonic() < deadline and not all(m.serves for m in pool.members())
        if not worker.reduce([float(away)])[0]:
            break
        time.sleep(0.5)
        weights.rejoin(model)
    return stop


if __name__ == "__main__":
    main()

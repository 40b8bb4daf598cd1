"""One rank of a trainer that says when it computes and when it publishes: ``python -m launcher.faults.trainer``.

It changes the weights a little, publishes them many times in a row, so that a fault that is aimed at a publication
meets one, asks every replica what it serves, and saves a checkpoint. It resumes from the last one.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

STEP_S = 1.0
PUBLISHES = 12
"""Per step."""


def main() -> None:
    """Trains for ``trainer.steps`` steps."""
    import torch

    from launcher import bridge, events
    from launcher.config import load_run_config
    from launcher.errors import TransferError
    from launcher.grpo.model import Worker
    from launcher.grpo.trainer import Trainer
    from launcher.stopping import should_stop

    config = load_run_config(Path(os.environ["LAUNCHER_RUN_DIR"]))
    worker = Worker.from_environment(config.layout.device)
    worker.join()
    trainer = Trainer.create(config, worker, Path(os.environ["LAUNCHER_MODEL_PATH"]))
    done = trainer.checkpoints.restore()
    weights = bridge.connect()
    weights.publish(trainer.model, version=done * PUBLISHES)
    for step in range(done + 1, config.trainer.steps + 1):
        if worker.is_main:
            events.emit("moment", moment="mid-step", step=step)
        time.sleep(STEP_S)  # the work
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.mul_(1.0 + 1e-4)
        if worker.is_main:
            events.emit("moment", moment="mid-publish", step=step)
        for count in range(PUBLISHES):
            report = weights.publish(trainer.model, version=step * PUBLISHES - PUBLISHES + count + 1)
        if worker.is_main:
            # A replica that dies just now does not answer; what the others serve is asked after the next step.
            with contextlib.suppress(TransferError):
                served = sorted({int(info.get("version") or 0) for info in weights.info()})
                events.emit("served", step=step, wanted=report.version, versions=served)
            events.emit("step", step=step, steps=config.trainer.steps, version=report.version, loss=0.0)
        stop = step < config.trainer.steps and should_stop()
        trainer.checkpoints.save(step)
        if stop:
            break
    weights.close()
    worker.end()


if __name__ == "__main__":
    main()

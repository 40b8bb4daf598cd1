"""One rank of a trainer that saves and resumes: ``python -m tests.integration.jobs.stopping_trainer STEPS STEP_S
BALLAST_MB``.

It counts, and writes down the sum of what it has seen: a step that is lost, or done twice, shows in it.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from launcher.checkpoint import Checkpoints
from launcher.control import emit as events
from launcher.stopping import should_stop


def main() -> None:
    """Ends with 0 when all steps are done, or when the run is asked to stop."""
    steps, step_s, ballast_mb = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    dist.init_process_group("gloo")
    random.seed(7)
    model = torch.nn.Linear(1, 1, bias=False)
    # Makes a checkpoint take its time.
    model.register_buffer("ballast", torch.zeros(ballast_mb << 18))
    with torch.no_grad():
        model.weight.zero_()
    checkpoints = Checkpoints.of_run(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    start = checkpoints.restore()
    for step in range(start + 1, steps + 1):
        time.sleep(step_s)  # the work
        with torch.no_grad():
            model.weight += random.random()
        if dist.get_rank() == 0:
            events.emit("step", step=step, steps=steps, reward=float(model.weight.detach()), loss=0.0, version=step)
        stop = step < steps and should_stop()
        if stop or checkpoints.is_due(step):
            checkpoints.save(step)
        if stop:
            break
    else:
        if dist.get_rank() == 0:
            found = {"weight": float(model.weight.detach()).hex(), "attempt": os.environ["LAUNCHER_ATTEMPT"]}
            (Path(os.environ["LAUNCHER_RUN_DIR"]) / "result.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

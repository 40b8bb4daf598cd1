"""A trainer without a model: ``sweep_trainer.py LR`` reports a few steps whose reward is best at 0.3."""

from __future__ import annotations

import sys

from launcher.control.emit import emit

STEPS = 4

if __name__ == "__main__":
    lr = float(sys.argv[1])
    if lr < 0:
        sys.exit("a negative learning rate")
    for step in range(1, STEPS + 1):
        emit("step", step=step, steps=STEPS, reward=1 - (lr - 0.3) ** 2 - 0.5 / step, loss=lr / step)
